"""The native linear operator against the reference; the widening of weights, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")
POOL = cpu.Pool(2)
ALONE = cpu.Pool(1)
FORMATS = (torch.bfloat16, torch.float16)


@settings(deadline=None, max_examples=100)
@given(
    out_features=st.integers(1, 140),
    in_features=st.one_of(st.integers(1, 70), st.sampled_from([128, 200, 4100])),
    tokens=st.integers(1, 16),
    dtype=st.sampled_from(FORMATS),
    with_bias=st.booleans(),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1 << 20),
)
def test_it_agrees_with_the_reference(
    out_features: int, in_features: int, tokens: int, dtype: torch.dtype, with_bias: bool, padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features + padding, generator=generator).to(dtype)[:, :in_features]
    bias = torch.randn(out_features, generator=generator) if with_bias else None
    x = torch.randn(tokens, in_features, generator=generator) / in_features**0.5
    y = cpu.linear(POOL, x, weight, bias)
    torch.testing.assert_close(y, reference.linear(x, weight, bias), atol=2e-5, rtol=2e-5)
    assert torch.equal(cpu.linear(ALONE, x, weight, bias), y)
    for t in range(tokens):
        assert torch.equal(cpu.linear(POOL, x[t : t + 1], weight, bias)[0], y[t])


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_16_bit_weight_is_widened_exactly(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).short().view(dtype)
    one = torch.ones(1, 1)
    alone = cpu.linear(POOL, one, every[:, None])[0]
    assert torch.equal(alone.nan_to_num(nan=7.0), every.float().nan_to_num(nan=7.0))
    assert torch.equal(alone.isnan(), every.isnan())
    finite = every[every.isfinite()]
    # Whole vectors, which take another path than the rest of a row.
    table = finite[: len(finite) // 64 * 64].view(-1, 64)
    picked = torch.cat([cpu.linear(POOL, torch.eye(64)[i : i + 16].contiguous(), table) for i in range(0, 64, 16)])
    assert torch.equal(picked.T, table.float())


def test_other_weights_and_more_tokens_are_the_reference_s() -> None:
    x = torch.randn(30, 12)
    weight = torch.randn(7, 12)
    torch.testing.assert_close(cpu.linear(POOL, x, weight), x @ weight.T)
    torch.testing.assert_close(cpu.linear(POOL, x[:2], weight), x[:2] @ weight.T)
    transposed = torch.randn(12, 7).bfloat16().T
    torch.testing.assert_close(cpu.linear(POOL, x[:2], transposed), x[:2] @ transposed.float().T)
    assert cpu.linear(POOL, x[:0], weight.half()).shape == (0, 7)


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="x should be"):
        cpu.linear(POOL, torch.zeros(1, 5), weight)
    with pytest.raises(ValueError, match="bias"):
        cpu.linear(POOL, torch.zeros(1, 4), weight, torch.zeros(2))
    with pytest.raises(ValueError, match="matrix"):
        cpu.linear(POOL, torch.zeros(1, 4), weight[0])
