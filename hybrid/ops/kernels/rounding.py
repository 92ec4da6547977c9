"""States in 8 bits, with which weights in blocks are multiplied; laid out as q8_0 vectors are, see `weights`."""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid.ops.kernels.weights import GROUP, elements_of_states


@triton.jit
def round_kernel(x, y, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr):
    """States `[tokens, COLUMNS]` in 8 bits, `BLOCKS` blocks of a token. Grid `[tokens, parts of its blocks]`."""
    token = tl.program_id(0)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    within = block < COLUMNS // 32
    word, byte = tl.arange(0, 8)[None, :, None], tl.arange(0, 4)[None, None, :]
    place = token * COLUMNS + block[:, None, None] * 32 + word * 4 + byte
    values = tl.load(x + place, within[:, None, None], other=0.0)
    store_rounded(values, y + token * elements_of_states("q8_0", COLUMNS), block, within, COLUMNS // 32)


@triton.jit
def rounded(values):
    """As `reference.rounded`: the words int32 `[n, 8]` of blocks fp32 `[n, 8, 4]`, their scales and their sums `[n]`.

    Kernels that call it are compiled without fused multiplication and addition, which would round once, not twice. A
    block that holds what is not finite gets a scale that is not.
    """
    magnitude = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # in the order of the values; NaN is the greatest
    greatest = tl.max(tl.max(magnitude, 2), 1).to(tl.float32, bitcast=True)
    inverse = tl.div_rn(tl.full(greatest.shape, 127.0, tl.float32), tl.where(greatest == 0, float("inf"), greatest))
    inverse = tl.where(inverse == float("inf"), 0.0, inverse)  # of what is too small to matter, as of zeros
    scaled = values * inverse[:, None, None]
    scaled = tl.where(scaled == scaled, scaled, 0.0)
    whole = ((scaled + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2^23: beyond it only whole numbers are floats
    shift = tl.arange(0, 4)[None, None, :] * 8
    words = tl.sum((whole & 0xFF) << shift, 2)
    return words, tl.div_rn(greatest, tl.full(greatest.shape, 127.0, tl.float32)), tl.sum(tl.sum(whole, 2), 1)


@triton.jit
def store_rounded(values, x, block, within, BLOCKS: tl.constexpr):
    """Blocks `block [n]` of states, fp32 `[n, 8, 4]`, in 8 bits to x: words, then scales, then sums of blocks."""
    words, scales, totals = rounded(values)
    group = block // GROUP
    together = tl.minimum(BLOCKS - group * GROUP, GROUP)
    place = (group * (GROUP * 8) + block % GROUP)[:, None] + tl.arange(0, 8)[None, :] * together[:, None]
    tl.store(x + place, words, within[:, None])
    tl.store(x + BLOCKS * 8 + block, scales.to(tl.int32, bitcast=True), within)
    tl.store(x + BLOCKS * 9 + block, totals, within)
