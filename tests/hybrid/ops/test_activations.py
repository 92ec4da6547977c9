"""Each activation of the sparse feed-forward by itself: its curve, and what double ReLU leaves out."""

import math

import pytest
import torch

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Counts, RowBank
from hybrid.spec import ACTIVATIONS

POOL = cpu.Pool(1)
CURVES = {
    "relu": lambda v: max(v, 0.0),
    "relu2": lambda v: max(v, 0.0) ** 2,
    "silu": lambda v: v / (1 + math.exp(-v)),
    "gelu": lambda v: v * math.erfc(-v / math.sqrt(2)) / 2,
    "gelu_tanh": lambda v: v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "drelu": lambda v: max(v, 0.0),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_curves_are_those_that_were_published(isa: str, activation: str) -> None:
    """Row i has the gate score v_i, the up score 1 and a down vector that adds to output i alone."""
    scores = torch.cat([torch.linspace(-9, 9, 145), torch.tensor([0.0, -0.0, 60, -60, 1e-3, -1e-3])]).bfloat16()
    n = len(scores)
    gates, ups = torch.zeros(n, n), torch.zeros(n, n)
    gates[:, 0], ups[:, 0] = scores.float(), 1
    bank = RowBank(torch.cat([gates, ups, torch.eye(n)], 1).bfloat16(), "bf16", n, True, activation)
    expected = torch.tensor([CURVES[activation](v) for v in scores.tolist()])
    for tokens in (1, 3, 20):  # more than 16 are the reference's
        y, _ = cpu.sparse_ffn(POOL, bank, torch.eye(n)[:1].repeat(tokens, 1), skip_inactive=False)
        torch.testing.assert_close(y, expected.expand(tokens, n), atol=1e-6, rtol=1e-6)


def test_rows_whose_up_projection_is_shut_add_nothing_under_drelu(isa: str) -> None:
    """They count as finished, since their up vector is read, and their down vector, here NaN, is not."""
    vectors = torch.ones(4, 3, 8)
    vectors[:, 0] = torch.tensor([1.0, 1, -1, 1])[:, None]  # gates
    vectors[:, 1] = torch.tensor([1.0, -1, 1, 0])[:, None]
    vectors[1:, 2] = math.nan
    rows = vectors.flatten(1).bfloat16()
    bank = RowBank(rows, "bf16", 8, True, "drelu")
    for tokens in (1, 5):
        x = torch.ones(tokens, 8)
        y, counts = cpu.sparse_ffn(POOL, bank, x)
        assert torch.equal(y, torch.full((tokens, 8), 64.0))
        assert counts == Counts(gated=4 * tokens, finished=3 * tokens)
        expected, expected_counts = reference.sparse_ffn(rows, "bf16", 8, True, "drelu", None, x, None, True)
        assert torch.equal(y, expected)
        assert counts == expected_counts


def test_double_relu_without_skipping_is_the_same_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, x = torch.randn(300, 3 * 33, generator=generator).bfloat16(), torch.randn(4, 33, generator=generator)
    bank = RowBank(rows, "bf16", 33, True, "drelu")
    gate, up, down = rows.double().split(33, 1)
    expected = ((x.double() @ gate.T).relu() * (x.double() @ up.T).relu()) @ down
    for skip_inactive in (False, True):
        y, counts = cpu.sparse_ffn(POOL, bank, x, skip_inactive=skip_inactive)
        torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-5)
        assert counts.finished == (int((x @ gate.float().T > 0).sum()) if skip_inactive else 1200)
