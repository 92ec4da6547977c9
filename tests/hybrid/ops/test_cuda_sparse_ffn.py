"""The device's sparse feed-forward operator against the reference, and what it promises beyond being right.

Most cases consist of multiples of powers of two, as those of the native operator do: whether an activation is zero is
then the same in any order of summation.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from hybrid.ops import cuda_weights, reference
from hybrid.ops.bank import Counts, RowBank
from hybrid.ops.kernels import tiles
from hybrid.ops.scratch import Scratch
from hybrid.spec import ACTIVATIONS
from profiler.formats import is_quantised
from profiler.matrix import WEIGHT_FORMATS, Matrix

LARGEST = {"q8_0": 127, "q4_0": -8}  # the quant that a block's largest value becomes


class Poisoned(Scratch):
    """Whatever is not written before it is read is not a number."""

    def get(self, name, shape, dtype):
        buffer = super().get(name, shape, dtype)
        return buffer.fill_(math.nan if dtype.is_floating_point else 0x7FC00000)


@dataclass(frozen=True)
class Case:
    """Arguments of one call, on the device."""

    bank: RowBank
    x: torch.Tensor
    named: torch.Tensor | None
    skip_inactive: bool

    def computed(self, y=None) -> tuple[torch.Tensor, Counts]:
        """Into a poisoned output, or added to y."""
        out = torch.full_like(self.x, math.nan) if y is None else y.clone()
        counts, scratch = torch.tensor([1000, 100], device=out.device), Poisoned(out.device)
        cuda_weights.sparse_ffn(
            self.bank, self.x, self.named, self.skip_inactive, out, counts, scratch, add=y is not None
        )
        return out, Counts(int(counts[0]) - 1000, int(counts[1]) - 100)

    def expected(self) -> tuple[torch.Tensor, Counts]:
        rows, bias = self.bank.memory
        shape = (self.bank.weight_format, self.bank.hidden, self.bank.gated, self.bank.activation, bias)
        return reference.sparse_ffn(rows, *shape, self.x, self.named, self.skip_inactive, None, self.bank.cutoff)

    def token(self, t: int) -> "Case":
        here = slice(t, t + 1)
        return Case(self.bank, self.x[here], None if self.named is None else self.named[here], self.skip_inactive)


def grid(shape, step, weight_format, generator, states=False):
    """Random multiples of a power of two, that are exact in a format: their products are, in any order."""
    if not is_quantised(weight_format):
        return torch.randint(-8, 9, shape, generator=generator) * step
    blocks = torch.randint(-7, 8, (*shape[:-1], shape[-1] // 32, 32), generator=generator)
    place = torch.randint(32, (*blocks.shape[:-1], 1), generator=generator)
    return (blocks.scatter(-1, place, 127 if states else LARGEST[weight_format]) * step).view(shape)


def make_bank(vectors, weight_format, activation, bias, cutoff, padding, device):
    """Vectors `[n, parts, hidden]`, their rows some bytes further apart than they are long."""
    parts = [Matrix.quantised(part, weight_format).data for part in vectors.unbind(1)]
    rows = torch.nn.functional.pad(torch.cat(parts, 1), (0, padding // parts[0].element_size())).to(device)
    return RowBank(rows, weight_format, vectors.shape[2], len(parts) == 3, activation, bias, cutoff=cutoff)


def make_named(kind, tokens, n, generator, device):
    """Names rows for each token; `strided` is a slice of the columns of a wider table."""
    if kind == "none":
        return None
    if kind in ("empty", "full"):
        return torch.full((tokens, n), kind == "full", device=device)
    wide = torch.rand(tokens, n + 9, generator=generator).to(device)
    density = {"few": 0.1, "many": 0.8, "strided": 0.4}[kind]
    return (wide < density)[:, 4 : 4 + n] if kind == "strided" else wide[:, :n].contiguous() < density


def draw_case(data, device) -> Case:
    weight_format = data.draw(st.sampled_from(WEIGHT_FORMATS))
    sizes = [32, 96, 160, 512, 672] if is_quantised(weight_format) else [1, 7, 64, 100, 300]
    hidden, n = data.draw(st.sampled_from(sizes)), data.draw(st.sampled_from([1, 2, 17, 64, 70]))
    tokens, gated = data.draw(st.sampled_from([1, 1, 2, 3, 8, 16])), data.draw(st.booleans())
    generator, small = torch.Generator().manual_seed(data.draw(st.integers(0, 1000))), 2.0 ** -(2 + hidden.bit_length())
    vectors = grid((n, 3 if gated else 2, hidden), 1 / 8, weight_format, generator)
    x = grid((tokens, hidden), small, weight_format, generator, states=True).to(device)
    bias = grid((n,), 1 / 8, "bf16", generator).to(device) if not gated and data.draw(st.booleans()) else None
    activation = data.draw(st.sampled_from([name for name in ACTIVATIONS if gated or name != "drelu"]))
    cutoff = data.draw(st.sampled_from([0.0, 0.0, 1 / 8, 1.0]))
    bank = make_bank(vectors, weight_format, activation, bias, cutoff, data.draw(st.sampled_from([0, 2, 64])), device)
    kind = data.draw(st.sampled_from(["none", "empty", "full", "few", "many", "strided"]))
    # Where gelu becomes zero by itself depends on the last bit of erf and exp, which backends need not share.
    skip = ("gelu" not in activation or cutoff > 0) and data.draw(st.booleans())
    return Case(bank, x, make_named(kind, tokens, n, generator, device), skip)


def check(case: Case) -> None:
    y, counts = case.computed()
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=2e-5 * max(1.0, float(expected.abs().max())), rtol=2e-5)
    assert counts == expected_counts


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_it_agrees_with_the_reference(device, data):
    check(draw_case(data, device))


@settings(deadline=None, max_examples=4)
@given(st.data())
def test_the_pieces_of_a_gpu_agree_with_the_reference_too(device, data):
    """Under the interpreter as well, which else is given larger ones."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("dot_tile", "down_tile"):
            made = getattr(tiles, name)
            patched.setattr(cuda_weights, name, lambda *sizes, made=made: made(*sizes, interpreted=False))
        check(draw_case(data, device))


@settings(deadline=None, max_examples=4)
@given(st.data())
def test_a_token_has_the_same_bits_in_every_run_alone_and_among_others(device, data):
    case = draw_case(data, device)
    y, counts = case.computed()
    again, again_counts = case.computed()
    assert torch.equal(again, y) and again_counts == counts
    for t in {0, len(y) - 1}:
        assert torch.equal(case.token(t).computed()[0][0], y[t])


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize(("gated", "activation", "skip"), [(True, "silu", True), (False, "gelu_tanh", False)])
def test_values_of_any_size(device, weight_format, gated, activation, skip):
    """Where an activation of almost zero adds almost nothing, any numbers may be compared. The rows are two chunks."""
    generator, n, hidden = torch.Generator().manual_seed(1), 260, 96
    vectors = torch.randn(n, 3 if gated else 2, hidden, generator=generator)
    vectors *= 10 ** (2 * torch.rand(n, 1, 1, generator=generator) - 2)
    bias = None if gated else torch.randn(n, generator=generator).to(device)
    bank = make_bank(vectors, weight_format, activation, bias, 0.0, 0, device)
    x = (torch.randn(3, hidden, generator=generator) / 16).to(device)
    case = Case(bank, x, make_named("few", 3, n, generator, device), skip)
    y, counts = case.computed()
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=3e-6 * float(expected.abs().max()), rtol=0)
    assert counts == expected_counts
    assert torch.equal(case.token(1).computed()[0][0], y[1])


def simple_bank(device, n=6, activation="relu", gated=True):
    generator = torch.Generator().manual_seed(2)
    vectors = grid((n, 3 if gated else 2, 32), 1 / 8, "bf16", generator)
    return make_bank(vectors, "bf16", activation, None, 0.0, 0, device)


def test_it_adds_to_what_is_there(device):
    case = Case(simple_bank(device), torch.ones(2, 32, device=device), None, True)
    before = torch.arange(64.0, device=device).view(2, 32)
    y, counts = case.computed()
    added, added_counts = case.computed(before)
    assert torch.equal(added, before + y)
    assert added_counts == counts


def test_no_rows_add_nothing(device):
    case = Case(simple_bank(device, n=0), torch.ones(2, 32, device=device), None, True)
    y, counts = case.computed()
    assert (y == 0).all() and counts == Counts(0, 0)
    before = torch.ones(2, 32, device=device)
    assert torch.equal(case.computed(before)[0], before)


@pytest.mark.parametrize("activation", ["relu", "relu2", "silu", "gelu", "gelu_tanh", "drelu"])
def test_what_is_no_number_stays_none_where_it_is_named(device, activation):
    x = torch.ones(3, 32, device=device)
    x[0, 3] = math.nan
    named = torch.ones(3, 6, dtype=torch.bool, device=device)
    named[1] = False
    y, counts = Case(simple_bank(device, activation=activation), x, named, True).computed()
    assert y[0].isnan().all() and (y[1] == 0).all() and y[2].isfinite().all()
    assert counts.gated == 12


def test_rows_that_nobody_names_are_not_read(device):
    """Weights that are no numbers would be seen; those of up and down vectors of inactive rows too."""
    bank = simple_bank(device)
    rows, _ = bank.memory
    x = torch.ones(1, 32, device=device)
    named = torch.tensor([[True, False, True, True, False, True]], device=device)
    rows[0, :32], rows[2, :32] = -1, 1  # shut, open
    clean, _ = Case(bank, x, named, True).computed()
    rows[1], rows[4], rows[0, 32:] = math.nan, math.nan, math.nan
    y, _ = Case(bank, x, named, True).computed()
    assert torch.equal(y, clean)


def test_a_closed_bank_and_what_does_not_fit_are_refused(device):
    bank, x, y = simple_bank(device), torch.zeros(2, 32, device=device), torch.zeros(2, 32, device=device)
    counts, scratch = torch.zeros(2, dtype=torch.int64, device=device), Scratch(device)
    named = torch.ones(2, 6, dtype=torch.bool, device=device)

    def call(x=x, named=named, y=y, counts=counts):
        cuda_weights.sparse_ffn(bank, x, named, True, y, counts, scratch)

    for wrong in (
        {"x": x[:1]},
        {"x": x[:, :16].contiguous()},
        {"y": y.t().contiguous().t()},
        {"x": x.repeat(9, 1), "y": y.repeat(9, 1)},
        {"named": named.byte()},
        {"named": named[:, :5]},
        {"named": named.t().contiguous().t()},
        {"counts": counts.int()},
    ):
        with pytest.raises(ValueError, match=r"(are|is|has) "):
            call(**wrong)
    call()
    bank.close()
    with pytest.raises(RuntimeError, match="closed"):
        call()
