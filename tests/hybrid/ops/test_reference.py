"""The definitions themselves, against plain loops, torch and transformers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from hybrid.ops import reference
from hybrid.ops.bank import Counts
from hybrid.spec import ACTIVATIONS
from profiler.blocks import vector_bytes
from profiler.matrix import WEIGHT_FORMATS, Matrix


def activated(activation: str, score: float) -> float:
    """The activations as they are published."""
    if activation == "silu":
        return score / (1 + math.exp(-score))
    if activation == "gelu":
        return score * (1 + math.erf(score / math.sqrt(2))) / 2
    if activation == "gelu_tanh":
        return score / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (score + 0.044715 * score**3)))
    return max(score, 0.0) ** (2 if activation == "relu2" else 1)


def loop_ffn(
    rows: torch.Tensor, hidden: int, gated: bool, activation: str, bias: torch.Tensor | None, x: torch.Tensor,
    named: torch.Tensor | None, skip_inactive: bool, cutoff: float = 0.0,
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
            value = activated(activation, score)
            value = 0.0 if abs(value) <= cutoff else value
            gated_count += 1
            if skip_inactive and value == 0:
                continue
            finished += 1
            up = float(parts[1] @ token)
            activations[t, r] = value * (max(up, 0.0) if activation == "drelu" else up) if gated else value
            y[t] += activations[t, r] * parts[-1]
    return y, activations, Counts(gated_count, finished)


@settings(deadline=None, max_examples=40)
@given(
    hidden=st.integers(1, 12),
    n=st.integers(0, 12),
    tokens=st.integers(0, 20),
    gated=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    with_bias=st.booleans(),
    with_named=st.booleans(),
    skip_inactive=st.booleans(),
    cutoff=st.sampled_from([0.0, 0.25, 0.3, 2.0]),
    seed=st.integers(0, 1000),
)
def test_sparse_ffn(
    hidden: int, n: int, tokens: int, gated: bool, activation: str, with_bias: bool, with_named: bool,
    skip_inactive: bool, cutoff: float, seed: int,
) -> None:  # fmt: skip
    gated = gated or activation == "drelu"
    skip_inactive = skip_inactive and ("gelu" not in activation or cutoff > 0)  # its zeros depend on the precision
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randint(-4, 5, (n, 3 * hidden + 2), generator=generator) / 4).bfloat16()
    bias = torch.randint(-4, 5, (n,), generator=generator) / 4 if with_bias and not gated else None
    x = torch.randint(-4, 5, (tokens, hidden), generator=generator) / 4
    named = torch.rand(tokens, n, generator=generator) < 0.5 if with_named else None
    filled = torch.full((tokens, n), 9.0)
    arguments = (hidden, gated, activation, bias, x, named, skip_inactive)
    y, counts = reference.sparse_ffn(rows, "bf16", *arguments, filled, cutoff)
    expected, activations, expected_counts = loop_ffn(rows, *arguments, cutoff)
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(filled.double(), activations, atol=1e-5, rtol=1e-5)
    assert counts == expected_counts


def records(vectors: torch.Tensor, weight_format: str, padding: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a bank from vectors `[n, parts, hidden]`, and the fp32 `[n, parts * hidden]` that they stand for."""
    parts = [Matrix.quantised(vectors[:, i], weight_format) for i in range(vectors.shape[1])]
    data = torch.cat([part.data for part in parts], 1)
    return functional.pad(data, (0, padding)), torch.cat([part.widened(slice(None)) for part in parts], 1)


@settings(deadline=None, max_examples=40)
@given(
    weight_format=st.sampled_from(WEIGHT_FORMATS),
    blocks=st.integers(1, 3),
    n=st.integers(0, 40),
    tokens=st.sampled_from([1, 3, 20]),
    gated=st.booleans(),
    share=st.sampled_from([None, 0.0, 0.02, 0.1, 0.5, 1.0]),
    skip_inactive=st.booleans(),
    at_once=st.sampled_from([7, 1024]),
    seed=st.integers(0, 1000),
)
def test_every_format_and_any_share_of_named_rows(
    weight_format: str, blocks: int, n: int, tokens: int, gated: bool, share: float | None, skip_inactive: bool,
    at_once: int, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    hidden = 32 * blocks
    rows, values = records(torch.randn(n, 3 if gated else 2, hidden, generator=generator), weight_format)
    bias = None if gated else torch.randn(n, generator=generator)
    x = torch.randn(tokens, hidden, generator=generator)
    named = None if share is None else torch.rand(tokens, n, generator=generator) < share
    filled = torch.full((tokens, n), 9.0)
    arguments = (hidden, gated, "relu", bias, x, named, skip_inactive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "ROWS_AT_ONCE", at_once)
        y, counts = reference.sparse_ffn(rows, weight_format, *arguments, filled)
    arguments = (hidden, gated, "relu", bias, reference.rounded(x, weight_format), named, skip_inactive)
    expected, activations, expected_counts = loop_ffn(values, *arguments)
    torch.testing.assert_close(y.double(), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(filled.double(), activations, atol=2e-4, rtol=1e-4)
    assert counts == expected_counts


@settings(deadline=None, max_examples=60)
@given(
    weight_format=st.sampled_from(["q8_0", "q4_0"]),
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=32, max_size=32),
)
def test_what_blocks_are_multiplied_with_is_rounded_to_8_bits(weight_format: str, values: list[float]) -> None:
    """The greatest magnitude is kept, all are whole multiples of a 127th of it, and none is further off than half."""
    x = torch.tensor([values + [0.0] * 32])
    found = reference.rounded(x, weight_format)
    greatest = float(x.abs().max())
    if greatest == 0 or 127 / greatest > 3.4e38:  # more than fp32 holds: such a block counts as zeros
        assert torch.equal(found, torch.zeros_like(x))
        return
    codes = found.double() * 127 / greatest
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    assert float(codes.abs().max()) == pytest.approx(127, abs=1e-4)
    assert float((codes - x.double() * 127 / greatest).abs().max()) <= 0.5 + 1e-4


def test_rounding_to_8_bits_takes_halves_to_even_and_leaves_other_formats_alone() -> None:
    x = torch.zeros(1, 64)
    x[0, :6] = torch.tensor([127.0, 0.5, 1.5, -2.5, -3.5, 3.49])
    expected = torch.zeros(1, 64)
    expected[0, :6] = torch.tensor([127.0, 0, 2, -2, -4, 3])
    assert torch.equal(reference.rounded(x, "q8_0"), expected)
    assert torch.equal(reference.rounded(x, "q4_0"), expected)
    assert torch.equal(reference.rounded(x, "bf16"), x)
    assert torch.equal(reference.rounded(x[:, :7], "f16"), x[:, :7])


def test_rounding_to_8_bits_divides_once_as_the_native_operators_do() -> None:
    """`127 / x` of torch is 127 times a rounded reciprocal: of a million codes, one would fall to the other side."""
    x = torch.randn(10000, 320, generator=torch.Generator().manual_seed(3))
    blocks = x.view(10000, 10, 32).numpy()
    greatest = np.abs(blocks).max(-1, keepdims=True)
    expected = np.rint(blocks * (np.float32(127) / greatest)) * (greatest / np.float32(127))
    assert torch.equal(reference.rounded(x, "q8_0"), torch.from_numpy(expected).view(10000, 320))


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
def test_a_block_with_a_value_that_is_not_finite_has_none_that_is(weight_format: str) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(2, 64)
        x[0, 40] = bad
        found = reference.rounded(x, weight_format)
        assert not found[0, 32:].isfinite().any()
        assert found[0, :32].isfinite().all() and found[1].isfinite().all()


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_rows_that_no_token_names_are_not_read(weight_format: str) -> None:
    """They hold NaN: whatever reads them spoils the sum."""
    vectors = torch.randn(400, 3, 64)
    named = torch.zeros(20, 400, dtype=torch.bool)
    named[:, 5:300:7] = torch.rand(20, 43) < 0.6
    rows, _ = records(vectors, weight_format)
    expected, counts = reference.sparse_ffn(
        rows, weight_format, 64, True, "relu", None, torch.ones(20, 64), named, True
    )
    unnamed = rows[~named.any(0)]
    rows[~named.any(0)] = torch.full_like(unnamed, 0xFF if rows.dtype == torch.uint8 else float("nan"))
    found, same = reference.sparse_ffn(rows, weight_format, 64, True, "relu", None, torch.ones(20, 64), named, True)
    assert torch.equal(found, expected) and counts == same


def test_inactive_rows_are_read_no_further_than_their_gate() -> None:
    rows = torch.randn(300, 3 * 16).half()
    rows[:250, :16] = -rows[:250, :16].abs()  # inactive for positive states
    x = torch.rand(20, 16)
    expected, counts = reference.sparse_ffn(rows, "f16", 16, True, "relu", None, x, None, True)
    rows[:250, 16:] = float("nan")
    found, same = reference.sparse_ffn(rows, "f16", 16, True, "relu", None, x, None, True)
    assert torch.equal(found, expected) and counts == same


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (torch.randint(-8, 9, (50, 30)) / 8).half()  # exact dot products: blocks agree on what is zero
    x, named, weight = (
        torch.randint(-8, 9, (20, 10)) / 8,
        torch.rand(20, 50) < 0.5,
        Matrix.of(torch.randn(50, 10).half()),
    )
    whole, counts = reference.sparse_ffn(rows, "f16", 10, True, "relu", None, x, named, True)
    product = reference.linear(x, weight)
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 7)
    blocks, block_counts = reference.sparse_ffn(rows, "f16", 10, True, "relu", None, x, named, True)
    torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)
    assert block_counts == counts
    torch.testing.assert_close(reference.linear(x, weight), product, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_linear_and_embed_widen_their_weights(weight_format: str) -> None:
    x, weight, bias = torch.randn(3, 96), Matrix.quantised(torch.randn(6, 96), weight_format), torch.randn(6)
    wide = weight.widened(slice(None))
    assert weight.stride_bytes == vector_bytes(weight_format, 96)
    for given_bias in (bias, None):
        y = reference.linear(x, weight, given_bias)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, functional.linear(reference.rounded(x, weight_format), wide, given_bias))
    ids = torch.tensor([5, 0, 5, 2])
    assert torch.equal(reference.embed(weight, ids), wide[ids])


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
    x, fc1, fc2 = torch.randn(4, 10), Matrix.of(torch.randn(3, 10).half()), Matrix.of(torch.randn(25, 3).half())
    logits = torch.relu(x @ fc1.data.float().T) @ fc2.data.float().T
    for threshold in (-1.0, 0.0, 0.5):
        named = reference.predict(x, fc1, True, fc2, None, threshold)
        assert named.dtype == torch.bool
        assert torch.equal(named, logits > threshold)


def test_predict_without_relu_or_without_a_bottleneck_and_with_a_bias() -> None:
    x, fc1, fc2 = torch.randn(4, 10), Matrix.of(torch.randn(3, 10).half()), Matrix.of(torch.randn(25, 3).half())
    gates, bias = Matrix.of(torch.randn(25, 10).half()), torch.randn(25)
    product = x @ fc1.data.float().T @ fc2.data.float().T
    assert torch.equal(reference.predict(x, fc1, False, fc2, bias, 0.25), product + bias > 0.25)
    assert torch.equal(reference.predict(x, None, False, gates, bias, 0.25), x @ gates.data.float().T + bias > 0.25)
