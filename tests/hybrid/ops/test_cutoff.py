"""Activations up to a bank's cutoff count as zero, in the native operator as in the reference."""

import math

import pytest
import torch

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank
from profiler.matrix import WEIGHT_FORMATS, Matrix

pytestmark = pytest.mark.usefixtures("isa")
POOL = cpu.Pool(2)
CASES = [("relu", 0.5, 2), ("relu2", 0.6, 1), ("silu", 0.05, 4), ("gelu", 0.15, 3), ("drelu", 0.5, 2)]


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize(("activation", "cutoff", "active"), CASES)
def test_activations_up_to_the_cutoff_count_as_zero(
    activation: str, cutoff: float, active: int, weight_format: str
) -> None:
    """Skipped where inactive rows are, and of no effect where they are not; NaN, the second token's, stays."""
    vectors = torch.ones(5, 3, 32)
    vectors[:, 0] = torch.tensor([0.75, 0.5, 0.875, -7.0, -0.25])[:, None] * torch.eye(32)[0]
    cutoff += 0.002 if weight_format == "q8_0" else 0  # whose scales are rounded
    rows = torch.cat([Matrix.quantised(part, weight_format).data for part in vectors.unbind(1)], 1)
    bank = RowBank(rows, weight_format, 32, True, activation, cutoff=cutoff)
    x = torch.tensor([1.0, math.nan])[:, None] * torch.eye(32)[0]
    y, counts = cpu.sparse_ffn(POOL, bank, x, skip_inactive=True)
    expected, expected_counts = reference.sparse_ffn(
        rows, weight_format, 32, True, activation, None, x, None, True, None, bank.cutoff
    )
    assert counts == expected_counts == Counts(10, active + 5)
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert y.isnan().tolist() == [[False] * 32, [True] * 32]
    dense, dense_counts = cpu.sparse_ffn(POOL, bank, x, skip_inactive=False)
    assert dense_counts == Counts(10, 10)
    assert torch.equal(dense[0], y[0])


@pytest.mark.parametrize("tokens", [3, 20])
def test_gates_are_shown_as_they_are_before_the_cutoff(tokens: int) -> None:
    rows, x = torch.randn(40, 3 * 16).bfloat16(), torch.randn(tokens, 16)
    bank = RowBank(rows, "bf16", 16, True, "silu", cutoff=0.3)
    activations, gates = torch.full((2, tokens, 40), 9.0)
    y, counts = cpu.sparse_ffn(POOL, bank, x, None, True, activations, gates)
    scores = x @ rows[:, :16].float().T
    torch.testing.assert_close(gates, torch.nn.functional.silu(scores), atol=1e-5, rtol=1e-5)
    assert torch.equal(activations != 0, gates.abs() > bank.cutoff)
    assert counts == Counts(40 * tokens, int((gates.abs() > bank.cutoff).sum()))
    whole, _ = cpu.sparse_ffn(POOL, bank, x, None, True, activations, gates, 0.0)
    assert bool((activations != 0).all())
    assert not torch.allclose(whole, y)
