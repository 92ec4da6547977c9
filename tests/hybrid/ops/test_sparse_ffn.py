"""The native sparse feed-forward operator against the reference, and what it promises beyond being right."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank

pytestmark = pytest.mark.usefixtures("isa")
POOLS = [cpu.Pool(threads) for threads in (1, 2, 3)]
FORMATS = (torch.bfloat16, torch.float16)


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
        shape = (self.bank.hidden, self.bank.gated, self.bank.activation, bias)
        return reference.sparse_ffn(rows, *shape, self.x, self.named, self.skip_inactive)

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


@st.composite
def cases(draw: st.DrawFn) -> Case:
    hidden = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 127, 128, 160, 200, 1100])))
    n = draw(st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 65, 128, 200, 300])))
    tokens = draw(st.integers(1, 16))
    gated = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    stride = (3 if gated else 2) * hidden + draw(st.integers(0, 5))
    rows = grid((n, stride), 1 / 8, generator)
    x = grid((tokens, hidden), 2.0 ** -(2 + hidden.bit_length() // 2), generator)
    bias = grid((n,), 1 / 8, generator) if not gated and draw(st.booleans()) else None
    activation = draw(st.sampled_from(["relu", "silu"]))
    bank = RowBank(rows.to(draw(st.sampled_from(FORMATS))), hidden, gated, activation, bias)
    named = make_named(draw(st.sampled_from(["none", "empty", "full", "few", "many", "strided"])), tokens, n, generator)
    return Case(bank, x, named, draw(st.booleans()))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_it_agrees_with_the_reference(case: Case) -> None:
    y, counts = case.native()
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=2e-5)
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


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_many_chunks_of_rows(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    rows = grid((6000, 3 * 48), 1 / 32, generator).bfloat16()
    named = torch.rand(tokens, 6000, generator=generator) < 0.3
    case = Case(RowBank(rows, 48, True, "relu"), grid((tokens, 48), 1 / 8, generator), named, True)
    y, counts = case.native(POOLS[2])
    expected, expected_counts = case.expected()
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert counts == expected_counts
    assert torch.equal(case.native(POOLS[0])[0], y)


@pytest.mark.parametrize("dtype", FORMATS)
def test_zero_activations_are_skipped_exactly(dtype: torch.dtype) -> None:
    # Gates +1, 0 and -1 times the first feature: one row open, one exactly at zero, one shut.
    rows = torch.ones(3, 12, dtype=dtype)
    rows[:, :4] = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]], dtype=dtype)
    bank = RowBank(rows, 4, True, "relu")
    x = torch.tensor([[2.0, 0, 0, 1]])
    y, counts = cpu.sparse_ffn(POOLS[0], bank, x, skip_inactive=True)
    assert counts == Counts(gated=3, finished=1)
    assert torch.equal(y, torch.full((1, 4), 6.0))
    dense, dense_counts = cpu.sparse_ffn(POOLS[0], bank, x, skip_inactive=False)
    assert dense_counts == Counts(gated=3, finished=3)
    assert torch.equal(dense, y)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("skip_inactive", [True, False])
def test_a_nan_is_not_hidden_and_stays_with_its_token(gated: bool, skip_inactive: bool) -> None:
    rows = torch.randn(70, 3 * 33).bfloat16()
    bank = RowBank(rows[:, : 99 if gated else 66], 33, gated, "relu")
    x = torch.randn(3, 33)
    x[1, 32] = float("nan")
    y, counts = cpu.sparse_ffn(POOLS[1], bank, x, skip_inactive=skip_inactive)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()
    _, others = cpu.sparse_ffn(POOLS[1], bank, x[[0, 2]], skip_inactive=skip_inactive)
    assert counts.finished == others.finished + 70


def test_what_is_not_named_is_not_read_into_the_result() -> None:
    rows = torch.randn(200, 3 * 40).bfloat16()
    rows[::2] = float("nan")
    named = torch.zeros(5, 200, dtype=torch.bool)
    named[:, 1::2] = True
    y, counts = cpu.sparse_ffn(POOLS[1], RowBank(rows, 40, True, "silu"), torch.randn(5, 40), named)
    assert not y.isnan().any()
    assert counts.gated == 500


def test_named_of_one_token_may_have_any_stride() -> None:
    rows = torch.randn(50, 3 * 8).bfloat16()
    bank, x = RowBank(rows, 8, True, "relu"), torch.randn(1, 8)
    named = (torch.rand(50, 3) < 0.5)[:, 1:2].T
    assert named.stride() != (50, 1)
    y, counts = cpu.sparse_ffn(POOLS[0], bank, x, named)
    assert torch.equal(y, cpu.sparse_ffn(POOLS[0], bank, x, named.contiguous())[0])
    assert counts.gated == int(named.sum())


def test_more_tokens_than_the_native_operator_takes() -> None:
    rows = torch.randn(100, 2 * 20).half() / 5
    bank = RowBank(rows, 20, False, "silu", torch.randn(100))
    x, named = torch.randn(40, 20), torch.rand(40, 100) < 0.5
    y, counts = cpu.sparse_ffn(POOLS[1], bank, x, named)
    parts = [cpu.sparse_ffn(POOLS[1], bank, x[i : i + 16], named[i : i + 16]) for i in range(0, 40, 16)]
    torch.testing.assert_close(y, torch.cat([part for part, _ in parts]), atol=2e-5, rtol=2e-5)
    assert counts.gated == sum(part.gated for _, part in parts)
    empty, no_counts = cpu.sparse_ffn(POOLS[1], bank, x[:0], named[:0])
    assert empty.shape == (0, 20)
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
    bank = RowBank(torch.zeros(4, 24, dtype=torch.bfloat16), 8, True, "relu")
    with pytest.raises(ValueError, match="x should be"):
        cpu.sparse_ffn(POOLS[0], bank, x)


@pytest.mark.parametrize(
    "named", [torch.ones(1, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool), torch.ones(1, 4)]
)
def test_named_rows_that_do_not_fit_are_refused(named: torch.Tensor) -> None:
    bank = RowBank(torch.zeros(4, 24, dtype=torch.bfloat16), 8, True, "relu")
    with pytest.raises(ValueError, match="named should be"):
        cpu.sparse_ffn(POOLS[0], bank, torch.zeros(1, 8), named)
