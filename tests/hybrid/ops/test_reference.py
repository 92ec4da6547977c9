"""The definitions themselves, against plain loops, torch and transformers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from hybrid.ops import reference
from hybrid.ops.bank import Counts


def loop_ffn(
    rows: torch.Tensor, hidden: int, gated: bool, activation: str, bias: torch.Tensor | None, x: torch.Tensor,
    named: torch.Tensor | None, skip_inactive: bool,
) -> tuple[torch.Tensor, torch.Tensor, Counts]:  # fmt: skip
    """Token by token and row by row, in double precision: the result, the activations and the counts."""
    y = torch.zeros(len(x), hidden, dtype=torch.float64)
    activations = torch.zeros(len(x), len(rows), dtype=torch.float64)
    gated_count = finished = 0
    for t, token in enumerate(x.double()):
        for r, row in enumerate(rows.double()):
            if named is not None and not named[t, r]:
                continue
            parts = row[: (3 if gated else 2) * hidden].split(hidden)
            score = float(parts[0] @ token) + (0.0 if bias is None else float(bias[r]))
            value = max(score, 0.0) if activation == "relu" else score / (1 + math.exp(-score))
            gated_count += 1
            if skip_inactive and value == 0:
                continue
            finished += 1
            activations[t, r] = value * float(parts[1] @ token) if gated else value
            y[t] += activations[t, r] * parts[-1]
    return y, activations, Counts(gated_count, finished)


@settings(deadline=None, max_examples=40)
@given(
    hidden=st.integers(1, 12),
    n=st.integers(0, 12),
    tokens=st.integers(0, 20),
    gated=st.booleans(),
    activation=st.sampled_from(["relu", "silu"]),
    with_bias=st.booleans(),
    with_named=st.booleans(),
    skip_inactive=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sparse_ffn(
    hidden: int, n: int, tokens: int, gated: bool, activation: str, with_bias: bool, with_named: bool,
    skip_inactive: bool, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randint(-4, 5, (n, 3 * hidden + 2), generator=generator) / 4).bfloat16()
    bias = torch.randint(-4, 5, (n,), generator=generator) / 4 if with_bias and not gated else None
    x = torch.randint(-4, 5, (tokens, hidden), generator=generator) / 4
    named = torch.rand(tokens, n, generator=generator) < 0.5 if with_named else None
    filled = torch.full((tokens, n), 9.0)
    arguments = (rows, hidden, gated, activation, bias, x, named, skip_inactive)
    y, counts = reference.sparse_ffn(*arguments, filled)
    expected, activations, expected_counts = loop_ffn(*arguments)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(filled.double(), activations, atol=1e-5, rtol=1e-5)
    assert counts == expected_counts


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (torch.randint(-8, 9, (50, 30)) / 8).half()  # exact dot products: blocks agree on what is zero
    x, named, weight = torch.randint(-8, 9, (20, 10)) / 8, torch.rand(20, 50) < 0.5, torch.randn(50, 10).half()
    whole, counts = reference.sparse_ffn(rows, 10, True, "relu", None, x, named, True)
    product = reference.linear(x, weight)
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 7)
    blocks, block_counts = reference.sparse_ffn(rows, 10, True, "relu", None, x, named, True)
    torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)
    assert block_counts == counts
    torch.testing.assert_close(reference.linear(x, weight), product, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_linear_widens_its_weights(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 11), torch.randn(6, 11).to(dtype), torch.randn(6)
    y = reference.linear(x, weight, bias)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, functional.linear(x, weight.float(), bias))


def test_norms() -> None:
    x, weight, bias = torch.randn(5, 24) * 3, torch.randn(24).bfloat16(), torch.randn(24).bfloat16()
    theirs = LlamaRMSNorm(24, eps=1e-5)
    theirs.weight.data = weight.float()
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), theirs(x))
    layer = functional.layer_norm(x, (24,), weight.float(), bias.float(), 1e-5)
    torch.testing.assert_close(reference.layer_norm(x, weight, bias, 1e-5), layer)
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(reference.layer_norm(x, torch.ones(24), None, 1e-5), centred)


def test_rope_is_that_of_hugging_face() -> None:
    x, positions = torch.randn(7, 3, 16), torch.tensor([0, 1, 2, 9, 100, 4095, 4096])
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    angles = torch.cat([positions[:, None] * frequencies] * 2, -1)[None]  # [1, tokens, head_dim]
    heads_first = x.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, angles.cos(), angles.sin())
    torch.testing.assert_close(reference.rope(x, positions, frequencies), expected[0].transpose(0, 1))


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 9),
    before=st.integers(0, 12),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 4),
    head_dim=st.sampled_from([1, 4, 10]),
    window=st.none() | st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scores_at_once=st.sampled_from([1, 40, 1 << 24]),
)
def test_attention_is_that_of_torch(
    tokens: int, before: int, kv_heads: int, shared: int, head_dim: int, window: int | None, dtype: torch.dtype,
    scores_at_once: int,
) -> None:  # fmt: skip
    keys = before + tokens
    q = torch.randn(tokens, kv_heads * shared, head_dim)
    k, v = (torch.randn(keys, kv_heads, head_dim).to(dtype) for _ in range(2))
    behind = torch.arange(before, keys)[:, None] - torch.arange(keys)  # how far each key lies back
    mask = (behind >= 0) & (behind < (window or keys))
    wide_k, wide_v = (m.float().repeat_interleave(shared, 1).transpose(0, 1) for m in (k, v))
    expected = functional.scaled_dot_product_attention(q.transpose(0, 1), wide_k, wide_v, attn_mask=mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "SCORES_AT_ONCE", scores_at_once)
        found = reference.attention(q, k, v, before, window)
    torch.testing.assert_close(found, expected.transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_predict() -> None:
    x, fc1, fc2 = torch.randn(4, 10), torch.randn(3, 10).half(), torch.randn(25, 3).half()
    logits = torch.relu(x @ fc1.float().T) @ fc2.float().T
    for threshold in (-1.0, 0.0, 0.5):
        named = reference.predict(x, fc1, fc2, threshold)
        assert named.dtype == torch.bool
        assert torch.equal(named, logits > threshold)
