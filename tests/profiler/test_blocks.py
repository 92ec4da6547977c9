"""The codec of blocks, against the gguf package: the same bytes once the interleave is undone, the same values."""

import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import blocks
from profiler.artifacts import UserError
from profiler.blocks import BLOCK, decode, encode, from_ggml, vector_bytes

TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
WORDS = {"q8_0": 8, "q4_0": 4}
FORMATS = sorted(TYPES)


def as_gguf(vector: bytes, weight_format: str, n: int) -> bytes:
    """One vector in the layout of ggml, word by word as the layout of planes is described."""
    count, words = n // BLOCK, WORDS[weight_format]
    quants, scales = vector[: count * words * 4], vector[count * words * 4 :]
    out = b""
    for block in range(count):
        group, lane = divmod(block, 16)
        lanes = min(16, count - group * 16)
        first = group * 16 * words * 4
        out += scales[2 * block : 2 * block + 2]
        for word in range(words):
            at = first + 4 * (word * lanes + lane)
            out += quants[at : at + 4]
    return out


def check(values: torch.Tensor, weight_format: str) -> None:
    rows, n = values.shape
    data = encode(values, weight_format)
    assert (data.dtype, data.shape) == (torch.uint8, (rows, vector_bytes(weight_format, n)))
    with np.errstate(all="ignore"):
        theirs = gguf.quantize(values.numpy(), TYPES[weight_format])
        expected = gguf.dequantize(theirs, TYPES[weight_format])
    for ours, reference in zip(data, theirs, strict=True):
        assert as_gguf(ours.numpy().tobytes(), weight_format, n) == reference.tobytes()
    assert torch.equal(decode(data, weight_format, n), torch.from_numpy(expected))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([1e-30, 1e-6, 1.0, 37.0, 3e4]),
    st.integers(0, 1000),
)
def test_bytes_and_values_are_those_of_gguf(weight_format, rows, count, scale, seed):
    values = torch.randn(rows, count * BLOCK, generator=torch.Generator().manual_seed(seed)) * scale
    check(values, weight_format)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(1, 20), st.integers(0, 1000))
def test_ties_are_broken_as_gguf_breaks_them(weight_format, count, seed):
    """Few distinct values: several of the largest magnitude with either sign, quotients that end in a half, zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 9, (3, count * BLOCK), generator=generator) / 2
    values[0, ::BLOCK] = 127.0  # scale 1, so that halves are exact
    values[1, :BLOCK] = 0
    check(values, weight_format)
    check(values.abs(), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_half_of_a_block_with_scale_one(weight_format):
    halves = torch.arange(-63, 64).repeat_interleave(2)[: 31 * 8].view(8, 31) * 2 + 0.5
    check(torch.cat((torch.full((8, 1), -127.0), halves / 1), 1), weight_format)
    check(torch.cat((torch.full((8, 1), 8.0), (halves / 16).trunc() + 0.5), 1), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_blocks_too_small_for_a_scale_are_zero(weight_format):
    values = torch.full((1, 4 * BLOCK), 1e-42)
    values[0, BLOCK : 2 * BLOCK] = -1e-44
    values[0, 2 * BLOCK :] = 1e-9
    assert not decode(encode(values, weight_format), weight_format, values.shape[1]).any()
    assert not decode(encode(torch.zeros(2, 64), weight_format), weight_format, 64).any()


@pytest.mark.parametrize(("weight_format", "largest"), [("q8_0", 127 * 65504.0), ("q4_0", 8 * 65504.0)])
def test_a_scale_beyond_half_is_refused(weight_format, largest):
    values = torch.zeros(3, 2 * BLOCK)
    values[1, 40] = -largest
    check(values, weight_format)
    values[1, 40] *= 1.01
    with pytest.raises(UserError, match="needs a scale beyond float16"):
        encode(values, weight_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_other_floats_are_taken_as_fp32(weight_format, dtype):
    values = torch.randn(5, 96).to(dtype)
    assert torch.equal(encode(values, weight_format), encode(values.float(), weight_format))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_chunks_and_views_give_the_same(weight_format, monkeypatch):
    values = torch.randn(7, 17 * BLOCK)
    whole = encode(values, weight_format)
    expected = decode(whole, weight_format, 17 * BLOCK)
    monkeypatch.setattr(blocks, "WEIGHTS_AT_ONCE", 2 * 17 * BLOCK)
    assert torch.equal(encode(values, weight_format), whole)
    assert torch.equal(encode(values.T.contiguous().T, weight_format), whole)
    spread = torch.zeros(7, whole.shape[1] + 3, dtype=torch.uint8)
    spread[:, 1:-2] = whole
    assert torch.equal(decode(spread[:, 1:-2], weight_format, 17 * BLOCK), expected)
    assert torch.equal(decode(spread[3:4, 1:-2], weight_format, 17 * BLOCK), expected[3:4])


def test_the_layout_of_a_full_group_of_q4_0():
    """Word s of block l at byte 4 (16 s + l); byte j of a block holds weights j and j + 16."""
    data = encode(torch.randn(1, 16 * BLOCK), "q4_0")[0].numpy()
    values = decode(torch.from_numpy(data)[None], "q4_0", 16 * BLOCK)[0].view(16, BLOCK)
    for block, word, byte in ((0, 0, 0), (5, 2, 3), (15, 3, 1)):
        (scale,) = struct.unpack_from("<e", data, 256 + 2 * block)
        found = int(data[4 * (16 * word + block) + byte])
        assert float(values[block, 4 * word + byte]) == scale * ((found & 15) - 8)
        assert float(values[block, 4 * word + byte + 16]) == scale * ((found >> 4) - 8)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 40), st.sampled_from([1e-3, 1.0, 3e4]), st.integers(0, 1000))
def test_one_bit_keeps_the_sign_and_the_mean_magnitude(rows, count, scale, seed):
    values = torch.randn(rows, count, BLOCK, generator=torch.Generator().manual_seed(seed)) * scale
    values[:, :, 3] = 0
    data = encode(values.flatten(1), "b1")
    assert (data.dtype, data.shape) == (torch.uint8, (rows, 6 * count))
    found = decode(data, "b1", count * BLOCK).view_as(values)
    means = values.abs().mean(-1, keepdim=True).half().float()
    assert torch.equal(found, torch.where(values >= 0, means, -means))
    for block in (0, count - 1):  # bit k of byte j is weight 4 k + j
        word = data[0, 4 * block : 4 * block + 4].tolist()
        assert [word[i % 4] >> (i // 4) & 1 for i in range(BLOCK)] == (values[0, block] >= 0).int().tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 40 * 65504.0])
def test_one_bit_of_what_has_no_scale_is_refused(bad):
    values = torch.ones(2, 64)
    values[1, 40] = bad
    with pytest.raises(UserError, match="needs a scale beyond float16 in b1"):
        encode(values, "b1")


@pytest.mark.parametrize("weight_format", FORMATS)
def test_no_rows(weight_format):
    assert decode(encode(torch.zeros(0, 64), weight_format), weight_format, 64).shape == (0, 64)


def test_sizes():
    assert [vector_bytes(f, 4096) for f in ("bf16", "f16", "q8_0", "q4_0")] == [8192, 8192, 4352, 2304]
    assert vector_bytes("b1", 4096) == 4096 * 1.5 / 8
    assert vector_bytes("f16", 7) == 14
    with pytest.raises(UserError, match=r"q4_0 stores blocks of 32 weights, and a vector of 60 .* bf16 and f16"):
        vector_bytes("q4_0", 60)
    with pytest.raises(UserError, match="vector of 33"):
        encode(torch.zeros(1, 33), "q8_0")


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(1, 4), st.integers(1, 40), st.integers(0, 1000))
def test_blocks_of_others_are_kept_bit_for_bit(weight_format, rows, count, seed):
    """Whatever bits they have, also such as no rounding makes: as a quantiser that weighs errors leaves them."""
    size, n = vector_bytes(weight_format, BLOCK), count * BLOCK
    theirs = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, count * size), dtype=np.uint8))
    data = from_ggml(theirs, weight_format)
    for ours, reference in zip(data, theirs, strict=True):
        assert as_gguf(ours.numpy().tobytes(), weight_format, n) == reference.numpy().tobytes()
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.dequantize(theirs.numpy(), TYPES[weight_format]))
    assert torch.equal(decode(data, weight_format, n).nan_to_num(), expected.nan_to_num())


def test_what_rounding_the_other_side_of_a_matrix_costs():
    """The figures of docs/model-directory.md, as root mean squares relative to the weights."""
    weights = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))

    def rounded(values, weight_format):
        return decode(encode(values.contiguous(), weight_format), weight_format, values.shape[1])

    def error(values):
        return round(100 * float((values - weights).pow(2).mean().sqrt() / weights.pow(2).mean().sqrt()), 2)

    stored = {name: rounded(weights, name) for name in FORMATS}
    assert error(stored["q8_0"]) == pytest.approx(0.54, abs=0.01)
    assert error(rounded(stored["q8_0"].T, "q8_0").T) == pytest.approx(0.75, abs=0.01)
    assert error(stored["q4_0"]) == pytest.approx(8.6, abs=0.1)
    assert error(rounded(stored["q4_0"].T, "q4_0").T) == pytest.approx(11.6, abs=0.1)
    assert error(rounded(stored["q4_0"].T, "q8_0").T) == pytest.approx(8.6, abs=0.1)
