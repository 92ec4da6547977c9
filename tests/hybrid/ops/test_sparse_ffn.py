"""The native sparse feed-forward operator against the reference, and what it promises beyond being right.

Whether a row is active is a comparison with zero, which two orders of summation may decide differently. So most cases
here consist of multiples of powers of two: their products are exact in any order, also after rounding to 8 bits.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank
from hybrid.spec import ACTIVATIONS
from profiler.formats import is_quantised
from profiler.matrix import WEIGHT_FORMATS, Matrix

pytestmark = pytest.mark.usefixtures("isa")
POOLS = [cpu.Pool(threads) for threads in (1, 2, 3)]
LARGEST = {"q8_0": 127, "q4_0": -8}  # the quant that a block's largest value becomes


@dataclass(frozen=True)
class Case:
    """Arguments of one call."""

    bank: RowBank
    x: torch.Tensor
    named: torch.Tensor | None
    skip_inactive: bool

    def native(self, pool: cpu.Pool = POOLS[1]) -> tuple[torch.Tensor, Counts]:
        return cpu.sparse_ffn(pool, self.bank, self.x, self.named, self.skip_inactive)

    def expected(self) -> tuple[torch.Tensor, Counts]:
        rows, bias = self.bank.memory
        shape = (self.bank.weight_format, self.bank.hidden, self.bank.gated, self.bank.activation, bias)
        return reference.sparse_ffn(rows, *shape, self.x, self.named, self.skip_inactive, None, self.bank.cutoff)

    def token(self, t: int) -> "Case":
        here = slice(t, t + 1)
        return Case(self.bank, self.x[here], None if self.named is None else self.named[here], self.skip_inactive)


def make_named(kind: str, tokens: int, n: int, generator: torch.Generator) -> torch.Tensor | None:
    """Names rows for each token; `strided` is a slice of the columns of a wider table."""
    if kind == "none":
        return None
    if kind in ("empty", "full"):
        return torch.full((tokens, n), kind == "full")
    wide = torch.rand(tokens, n + 9, generator=generator)
    density = {"few": 0.1, "many": 0.8, "strided": 0.4}[kind]
    return (wide < density)[:, 4 : 4 + n] if kind == "strided" else wide[:, :n].contiguous() < density


def grid(shape: tuple[int, ...], step: float, generator: torch.Generator) -> torch.Tensor:
    """Random multiples of a power of two: their dot products are exact in any order, so both sides agree on zeros."""
    return torch.randint(-8, 9, shape, generator=generator) * step


def block_grid(shape: tuple[int, ...], step: float, largest: int, generator: torch.Generator) -> torch.Tensor:
    """The same for rounding in blocks: one value of each of them is `largest` steps, so that its scale is the step."""
    blocks = torch.randint(-7, 8, (*shape[:-1], shape[-1] // 32, 32), generator=generator)
    place = torch.randint(32, (*blocks.shape[:-1], 1), generator=generator)
    return (blocks.scatter(-1, place, largest) * step).view(shape)


def make_rows(vectors: torch.Tensor, weight_format: str, padding: int = 0) -> torch.Tensor:
    """Rows of a bank from vectors `[n, parts, hidden]`."""
    parts = [Matrix.quantised(part, weight_format).data for part in vectors.unbind(1)]
    return functional.pad(torch.cat(parts, 1), (0, padding))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    weight_format = draw(st.sampled_from(WEIGHT_FORMATS))
    blocks = is_quantised(weight_format)
    odd_sizes = st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 127, 128, 160, 200, 1100]))
    hidden = 32 * draw(st.integers(1, 40)) if blocks else draw(odd_sizes)
    n = draw(st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 65, 128, 200, 300])))
    tokens, gated = draw(st.integers(1, 16)), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    shape, small = (n, 3 if gated else 2, hidden), 2.0 ** -(2 + hidden.bit_length() // 2)
    if blocks:
        vectors = block_grid(shape, 1 / 8, LARGEST[weight_format], generator)
        x = block_grid((tokens, hidden), small / 8, 127, generator)
    else:
        vectors, x = grid(shape, 1 / 8, generator), grid((tokens, hidden), small, generator)
    bias = grid((n,), 1 / 8, generator) if not gated and draw(st.booleans()) else None
    rows = make_rows(vectors, weight_format, 2 * draw(st.integers(0, 2)))
    activation = draw(st.sampled_from([name for name in ACTIVATIONS if gated or name != "drelu"]))
    cutoff = draw(st.sampled_from([0.0, 0.0, 1 / 8, 0.3, 1.0]))
    bank = RowBank(rows, weight_format, hidden, gated, activation, bias, cutoff=cutoff)
    named = make_named(draw(st.sampled_from(["none", "empty", "full", "few", "many", "strided"])), tokens, n, generator)
    # Where gelu becomes zero by itself depends on the last bit of erf and tanh, which backends need not share.
    return Case(bank, x, named, ("gelu" not in activation or cutoff > 0) and draw(st.booleans()))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_it_agrees_with_the_reference(case: Case) -> None:
    y, counts = case.native()
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=2e-5 * max(1.0, float(expected.abs().max())), rtol=2e-5)
    assert counts == expected_counts


@settings(deadline=None, max_examples=40)
@given(cases())
def test_threads_and_neighbouring_tokens_do_not_change_a_bit(case: Case) -> None:
    y, counts = case.native(POOLS[0])
    for pool in POOLS[1:]:
        again, again_counts = case.native(pool)
        assert torch.equal(again, y)
        assert again_counts == counts
    for t in range(len(case.x)):
        assert torch.equal(case.token(t).native()[0][0], y[t])


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize(
    ("gated", "activation", "skip_inactive"),
    [(True, "silu", True), (False, "relu", False), (False, "gelu", False), (True, "relu2", False)],
)
def test_values_of_any_size(weight_format: str, gated: bool, activation: str, skip_inactive: bool) -> None:
    """Where no row is left out, or an activation of almost zero adds almost nothing, any numbers may be compared."""
    vectors = torch.randn(300, 3 if gated else 2, 544) * 10 ** (2 * torch.rand(300, 1, 1) - 2)
    bias = None if gated else torch.randn(300)
    bank = RowBank(make_rows(vectors, weight_format), weight_format, 544, gated, activation, bias)
    case = Case(bank, torch.randn(5, 544) / 16, torch.rand(5, 300) < 0.5, skip_inactive)
    y, counts = case.native()
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=3e-6 * float(expected.abs().max()), rtol=0)
    assert counts == expected_counts
    for pool in POOLS:
        assert torch.equal(case.native(pool)[0], y)
    assert all(torch.equal(case.token(t).native()[0][0], y[t]) for t in range(5))


@settings(deadline=None)
@given(case=cases())
def test_what_multiplies_the_down_vectors_is_shown(case: Case) -> None:
    rows, bias = case.bank.memory
    tokens, n = len(case.x), len(case.bank)
    wide = torch.full((tokens, n + 5), 7.0)
    expected = torch.full((tokens, n), 7.0)
    y, _ = cpu.sparse_ffn(POOLS[1], case.bank, case.x, case.named, case.skip_inactive, wide[:, 2 : 2 + n])
    shape = (case.bank.weight_format, case.bank.hidden, case.bank.gated, case.bank.activation, bias)
    reference.sparse_ffn(rows, *shape, case.x, case.named, case.skip_inactive, expected, case.bank.cutoff)
    torch.testing.assert_close(wide[:, 2 : 2 + n], expected, atol=1e-6, rtol=2e-5)
    assert (wide[:, :2] == 7).all() and (wide[:, 2 + n :] == 7).all()
    assert torch.equal(y, case.native()[0])


@pytest.mark.parametrize("weight_format", ["bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_many_chunks_of_rows(tokens: int, weight_format: str) -> None:
    generator = torch.Generator().manual_seed(tokens)
    largest = LARGEST.get(weight_format, 8)
    rows = make_rows(block_grid((6000, 3, 64), 1 / 32, largest, generator), weight_format)
    named = torch.rand(tokens, 6000, generator=generator) < 0.3
    x = block_grid((tokens, 64), 1 / 64, 127, generator)
    case = Case(RowBank(rows, weight_format, 64, True, "relu"), x, named, True)
    y, counts = case.native(POOLS[2])
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=2e-6 * float(expected.abs().max()), rtol=2e-5)
    assert counts == expected_counts
    assert torch.equal(case.native(POOLS[0])[0], y)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_zero_activations_are_skipped_exactly(weight_format: str) -> None:
    # Gates +1, 0 and -1 times the first feature: one row open, one exactly at zero, one shut.
    vectors = torch.ones(3, 3, 32)
    vectors[:, 0] = torch.tensor([1.0, 0, -1])[:, None] * torch.eye(32)[0]
    bank = RowBank(make_rows(vectors, weight_format), weight_format, 32, True, "relu")
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 3] = 127.0, 63.0
    y, counts = cpu.sparse_ffn(POOLS[0], bank, x, skip_inactive=True)
    assert counts == Counts(gated=3, finished=1)
    # The scale of a block of ones, 1/127, is a rounded half.
    torch.testing.assert_close(y, torch.full((1, 32), 127.0 * 190), rtol=2e-3, atol=0)
    dense, dense_counts = cpu.sparse_ffn(POOLS[0], bank, x, skip_inactive=False)
    assert dense_counts == Counts(gated=3, finished=3)
    assert torch.equal(dense, y)


@pytest.mark.parametrize("gated", [True, False])
def test_a_square_may_leave_the_range_of_floats_on_either_side(gated: bool) -> None:
    """What decides whether a row is skipped is the activation: a square that underflows is a zero, though its root is
    none; one that overflows is infinite.
    """
    # The last three squares: the smallest normal float, a subnormal one, and less than any.
    scores = torch.tensor([3.0, 2.0**64, -1.0, 0.0, 2.0**-63, 2.0**-72, 2.0**-76])
    vectors = torch.ones(len(scores), 3 if gated else 2, 1)
    vectors[:, 0, 0] = scores
    rows, x = vectors.flatten(1).bfloat16(), torch.ones(1, 1)
    for finite in (False, True):
        some = rows[2:] if finite else rows
        case = Case(RowBank(some, "bf16", 1, gated, "relu2"), x, None, True)
        y, counts = case.native()
        expected, expected_counts = case.expected()
        assert counts == expected_counts == Counts(gated=len(some), finished=2 if finite else 4)
        assert torch.equal(y, expected)
        assert y.item() == (2.0**-126 + 2.0**-144 if finite else math.inf)
        dense = Case(case.bank, x, None, False)
        assert torch.equal(dense.native()[0], y)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize(("gated", "activation"), [(True, "relu"), (False, "relu"), (False, "relu2"), (True, "drelu")])
@pytest.mark.parametrize("skip_inactive", [True, False])
def test_a_nan_is_not_hidden_and_stays_with_its_token(
    gated: bool, activation: str, skip_inactive: bool, weight_format: str
) -> None:
    hidden = 96 if is_quantised(weight_format) else 33
    rows = make_rows(torch.randn(70, 3 if gated else 2, hidden), weight_format)
    bank = RowBank(rows, weight_format, hidden, gated, activation)
    x = torch.randn(3, hidden)
    x[1, 20] = float("nan")
    y, counts = cpu.sparse_ffn(POOLS[1], bank, x, skip_inactive=skip_inactive)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()
    _, others = cpu.sparse_ffn(POOLS[1], bank, x[[0, 2]], skip_inactive=skip_inactive)
    assert counts.finished == others.finished + 70


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_what_is_not_named_is_not_read_into_the_result(weight_format: str) -> None:
    rows = make_rows(torch.randn(200, 3, 64), weight_format)
    rows[::2] = 0xFF if is_quantised(weight_format) else float("nan")  # as scales, NaN too
    named = torch.zeros(5, 200, dtype=torch.bool)
    named[:, 1::2] = True
    bank = RowBank(rows, weight_format, 64, True, "silu")
    y, counts = cpu.sparse_ffn(POOLS[1], bank, torch.randn(5, 64), named)
    assert not y.isnan().any()
    assert counts.gated == 500


def test_named_of_one_token_may_have_any_stride() -> None:
    bank, x = RowBank(torch.randn(50, 3 * 8).bfloat16(), "bf16", 8, True, "relu"), torch.randn(1, 8)
    named = (torch.rand(50, 3) < 0.5)[:, 1:2].T
    assert named.stride() != (50, 1)
    y, counts = cpu.sparse_ffn(POOLS[0], bank, x, named)
    assert torch.equal(y, cpu.sparse_ffn(POOLS[0], bank, x, named.contiguous())[0])
    assert counts.gated == int(named.sum())


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_more_tokens_than_the_native_operator_takes(weight_format: str) -> None:
    rows = make_rows(torch.randn(100, 2, 64) / 8, weight_format)
    bank = RowBank(rows, weight_format, 64, False, "silu", torch.randn(100))
    x, named = torch.randn(40, 64), torch.rand(40, 100) < 0.5
    y, counts = cpu.sparse_ffn(POOLS[1], bank, x, named)
    parts = [cpu.sparse_ffn(POOLS[1], bank, x[i : i + 16], named[i : i + 16]) for i in range(0, 40, 16)]
    torch.testing.assert_close(y, torch.cat([part for part, _ in parts]), atol=2e-5, rtol=2e-5)
    assert counts.gated == sum(part.gated for _, part in parts)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_no_tokens_have_no_outputs(weight_format: str) -> None:
    bank = RowBank(make_rows(torch.randn(9, 2, 32), weight_format), weight_format, 32, False, "silu")
    empty, no_counts = cpu.sparse_ffn(POOLS[1], bank, torch.zeros(0, 32), torch.zeros(0, 9, dtype=torch.bool))
    assert empty.shape == (0, 32)
    assert no_counts == Counts(0, 0)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 7),
        torch.zeros(8),
        torch.zeros(1, 8, dtype=torch.float64),
        torch.zeros(8, 2).T,
        torch.zeros(2, 16)[:, :8],
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: torch.Tensor) -> None:
    bank = RowBank(torch.zeros(4, 24, dtype=torch.bfloat16), "bf16", 8, True, "relu")
    with pytest.raises(ValueError, match="x should be"):
        cpu.sparse_ffn(POOLS[0], bank, x)


@pytest.mark.parametrize(
    "named", [torch.ones(1, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool), torch.ones(1, 4)]
)
def test_named_rows_that_do_not_fit_are_refused(named: torch.Tensor) -> None:
    bank = RowBank(torch.zeros(4, 24, dtype=torch.bfloat16), "bf16", 8, True, "relu")
    with pytest.raises(ValueError, match="named should be"):
        cpu.sparse_ffn(POOLS[0], bank, torch.zeros(1, 8), named)
