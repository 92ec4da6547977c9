"""The codec of block-quantised vectors, laid out so that a SIMD lane takes a block; q8_0 and q4_0 have ggml's values.

A block is 32 weights and one float16 scale. A vector of `n` weights is two planes, all quants and then all scales in
the order of the blocks. Blocks stand in groups of 16, the last of which may be shorter: the quants of a block are
32-bit words (q8_0: 8 words of 4 signed bytes; q4_0: 4 words, byte j with weight j in its low nibble and weight j + 16
in its high one, each plus 8), and a group holds first the word 0 of each of its blocks, then the word 1, and so on.

b1, for predictors, has a bit for each weight: the scale where it is set, minus the scale where it is not. A block is
one word; bit k of byte j is weight 4 k + j, so that a shift by one brings the next four weights to the lowest bits.
"""

from __future__ import annotations

import torch

from profiler.artifacts import UserError
from profiler.formats import BLOCK, SCALE_BYTES, is_quantised, quant_bytes, vector_bytes

__all__ = ["BLOCK", "decode", "encode", "from_ggml", "scales_of", "vector_bytes"]

GROUP = 16  # blocks whose words are interleaved
WEIGHTS_AT_ONCE = 1 << 20  # so that what lies between values and quants stays small
LOW_NIBBLES = 0x0F0F0F0F
LOW_BITS = 0x01010101


def encode(values: torch.Tensor, weight_format: str) -> torch.Tensor:
    """uint8 `[rows, vector_bytes]` of values `[rows, n]`, finite floats that are rounded to fp32 first.

    Rounds as ggml does. q8_0: d = max |x| / 127, quants are x / d rounded to nearest, halves away from zero. q4_0: d is
    the value of largest magnitude (the first of equals) over -8, quants are x / d + 8.5 cut to 0 .. 15. The division
    is by the unrounded d, as a product with its reciprocal; where that is infinite, the scale and so the block is zero.
    b1: d is the mean of |x|, of least squared error (XNOR-Net, Rastegari et al. 2016, eq. 6); a bit says x >= 0.

    Raises:
        UserError: `n` is not a whole number of blocks, or a scale is beyond float16.
    """
    rows, n = values.shape
    quants = quant_bytes(weight_format, n)
    data = torch.empty(rows, vector_bytes(weight_format, n), dtype=torch.uint8, device=values.device)
    step = max(1, WEIGHTS_AT_ONCE // n)
    for first in range(0, rows, step):
        blocks = values[first : first + step].float().contiguous().view(-1, n // BLOCK, BLOCK)
        encoded, scales = ENCODERS[weight_format](blocks)
        half = scales.half()
        if not torch.isfinite(half).all():
            largest = float(blocks.abs().max())
            raise UserError(f"a weight of {largest:.3g} needs a scale beyond float16 in {weight_format}")
        words = encoded.view(torch.int32)  # [rows, blocks, words of a block]
        data[first : first + step, :quants] = _interleave(words).view(torch.uint8)
        data[first : first + step, quants:] = half.view(torch.uint8)
    return data


def from_ggml(blocks: torch.Tensor, weight_format: str) -> torch.Tensor:
    """uint8 `[rows, vector_bytes]` of blocks as ggml stores them, uint8 `[rows, n / 32 * bytes of a block]`: the same
    quants and scales, each block's scale before its quants there.
    """
    data, size = torch.empty_like(blocks), vector_bytes(weight_format, BLOCK)
    count = blocks.shape[1] // size
    quants, split = quant_bytes(weight_format, count * BLOCK), blocks.view(len(blocks), count, size)
    words = split[..., SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.int32)
    data[:, :quants] = _interleave(words).view(torch.uint8)
    data[:, quants:] = split[..., :SCALE_BYTES].reshape(len(blocks), -1)
    return data


def decode(data: torch.Tensor, weight_format: str, n: int) -> torch.Tensor:
    """fp32 `[rows, n]` of what `encode` made, uint8 `[rows, vector_bytes]`."""
    rows = len(data)
    values = torch.empty(rows, n // BLOCK, BLOCK, device=data.device)
    quants = quant_bytes(weight_format, n)
    step = max(1, WEIGHTS_AT_ONCE // n)
    for first in range(0, rows, step):
        here, out = data[first : first + step], values[first : first + step]
        copied = here[:, :quants].clone(memory_format=torch.contiguous_format)  # words may lie at any byte
        words = _separate(copied.view(torch.int32), n // BLOCK)
        if weight_format == "q8_0":
            out.copy_(words.view(torch.int8))
        elif weight_format == "b1":
            for k in range(8):
                out[..., 4 * k : 4 * k + 4] = ((words >> k) & LOW_BITS).view(torch.uint8)
            out.mul_(2).sub_(1)
        else:
            out[..., : BLOCK // 2] = (words & LOW_NIBBLES).view(torch.uint8)
            out[..., BLOCK // 2 :] = ((words >> 4) & LOW_NIBBLES).view(torch.uint8)
            out -= 8
        out *= scales_of(here, weight_format, n).float()[..., None]
    return values.view(rows, n)


def scales_of(data: torch.Tensor, weight_format: str, n: int) -> torch.Tensor:
    """float16 `[rows, n / 32]`: a copy of the scales of vectors of `n` weights, uint8 `[rows, vector_bytes]`."""
    assert is_quantised(weight_format)
    scales = data[:, quant_bytes(weight_format, n) :]
    return scales.clone(memory_format=torch.contiguous_format).view(torch.float16)


def _encode_q8_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[rows, blocks, 32]` and fp32 scales `[rows, blocks]` of fp32 `[rows, blocks, 32]`."""
    scales = blocks.abs().amax(-1) / 127
    scaled = blocks * _reciprocal(scales)
    whole = scaled.to(torch.int8)  # towards zero, as the next one: exact, unlike adding a half before
    return whole + scaled.sub_(whole).mul_(2).to(torch.int8), scales


def _encode_q4_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `[rows, blocks, 16]` and fp32 scales `[rows, blocks]` of fp32 `[rows, blocks, 32]`."""
    low, high = blocks.amin(-1), blocks.amax(-1)  # each far faster than aminmax
    largest = torch.where(high > -low, high, low)
    tied = (high == -low).nonzero(as_tuple=True)  # seldom: which of the two comes first takes a search
    of_tied = blocks[tied]
    largest[tied] = of_tied.gather(-1, of_tied.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scales = largest / -8
    quants = (blocks * _reciprocal(scales)).add_(8.5).to(torch.uint8).clamp_(max=15)
    return quants[..., : BLOCK // 2] | quants[..., BLOCK // 2 :] << 4, scales


def _encode_b1(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `[rows, blocks, 4]` and fp32 scales `[rows, blocks]` of fp32 `[rows, blocks, 32]`."""
    bits = (blocks >= 0).view(*blocks.shape[:2], 8, 4).to(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    return (bits << places).sum(2, dtype=torch.uint8), blocks.abs().mean(-1)


ENCODERS = {"q8_0": _encode_q8_0, "q4_0": _encode_q4_0, "b1": _encode_b1}


def _reciprocal(scales: torch.Tensor) -> torch.Tensor:
    inverse = scales.reciprocal()
    return inverse.masked_fill_(~torch.isfinite(inverse), 0)[..., None]


def _interleave(words: torch.Tensor) -> torch.Tensor:
    """int32 `[rows, blocks * s]`, word-major within each group, of words `[rows, blocks, s]`."""
    rows, blocks, s = words.shape
    whole, mixed = blocks - blocks % GROUP, words.new_empty(rows, blocks * s)
    groups = mixed[:, : whole * s].view(rows, -1, s, GROUP)
    groups.copy_(words[:, :whole].view(rows, -1, GROUP, s).transpose(2, 3))
    mixed[:, whole * s :].view(rows, s, blocks - whole).copy_(words[:, whole:].transpose(1, 2))
    return mixed


def _separate(mixed: torch.Tensor, blocks: int) -> torch.Tensor:
    """What `_interleave` was given."""
    rows, s = len(mixed), mixed.shape[1] // blocks
    whole, words = blocks - blocks % GROUP, mixed.new_empty(rows, blocks, s)
    groups = mixed[:, : whole * s].view(rows, -1, s, GROUP)
    words[:, :whole].view(rows, -1, GROUP, s).copy_(groups.transpose(2, 3))
    words[:, whole:].copy_(mixed[:, whole * s :].view(rows, s, blocks - whole).transpose(1, 2))
    return words
