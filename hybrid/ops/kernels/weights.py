"""How kernels read weights: everything about the layout of `profiler.blocks` that they know is here.

Vectors of 16-bit floats are multiplied in fp32. Vectors of blocks are multiplied with states in 8 bits, which lie as
the words of a q8_0 vector do, so that a word of weights and the words of states that belong to it are loaded alike, 16
bytes by a thread, and multiplied four at a time (dp4a). Sums within a block are whole numbers, exact in any order.

`UNIT` is the size of the elements that vectors of blocks are addressed in: 4 bytes, or 2 where they lie at odd halves
of words. 16-bit floats are addressed by themselves.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(16)  # blocks whose words are interleaved
MAGIC = tl.constexpr(0x4B000000)  # 2^23 in fp32: what is put into its lowest bits is added to it
DP4A = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def dots(
    weights, starts, live, x, tokens, FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """fp32 `[TOKENS, ROWS]`: the products of vectors with the states of each token.

    weights: of 16-bit floats, or bytes; starts: int64 `[ROWS]`, where vectors begin, in units; live: bool `[ROWS]`,
    those to read; x: states as they are, or in 8 bits from `rounded`. A token's products are the same whatever TOKENS,
    ROWS and UNROLL are.
    """
    if FORMAT == "bf16" or FORMAT == "f16":
        return _float_dots(weights, starts, live, x, tokens, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
    else:
        BLOCKS: tl.constexpr = COLUMNS // 32
        TOGETHER: tl.constexpr = min(BLOCKS, GROUP.value)
        REST: tl.constexpr = BLOCKS % TOGETHER
        sums = _block_dots(
            weights, starts, live, x, tokens, 0, BLOCKS - REST, TOGETHER,
            FORMAT, UNIT, COLUMNS, TOKENS, ROWS, LANES, UNROLL,
        )  # fmt: skip
        if REST > 0:
            sums += _block_dots(
                weights, starts, live, x, tokens, BLOCKS - REST, REST, REST,
                FORMAT, UNIT, COLUMNS, TOKENS, ROWS, 4, UNROLL,
            )  # fmt: skip
        return sums


@triton.jit
def _float_dots(
    weights, starts, live, x, tokens,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A thread takes four columns at a time of weights and states alike."""
    token, start, alive = tl.arange(0, TOKENS)[:, None, None], starts[None, :, None], live[None, :, None]
    four = tl.arange(0, LANES * 4)[None, None, :]
    sums = tl.zeros([TOKENS, ROWS, LANES], tl.float32)
    for first in range(0, COLUMNS, LANES * 4 * UNROLL):
        for step in tl.static_range(UNROLL):
            column = first + step * LANES * 4 + four
            place = tl.max_contiguous(start + column, [1, 1, 4])
            w = tl.load(weights + place, (column < COLUMNS) & alive, other=0.0)
            states = tl.load(x + column + token * COLUMNS, (column < COLUMNS) & (token < tokens), other=0.0)
            sums += _by_fours(w.to(tl.float32) * states)
    return tl.sum(sums, 2)


@triton.jit
def _block_dots(
    weights, starts, live, x, tokens, FIRST: tl.constexpr, BLOCKS: tl.constexpr, TOGETHER: tl.constexpr,
    FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Of the `BLOCKS` blocks from `FIRST` on, which stand in groups of `TOGETHER`; a thread takes four of them."""
    WORDS: tl.constexpr = words_of(FORMAT)
    PARTS: tl.constexpr = 8 // WORDS  # of a word: bytes shifted by some bits
    LOWEST: tl.constexpr = lowest_bits(FORMAT)
    token, start, alive = tl.arange(0, TOKENS)[:, None, None], starts[None, :, None], live[None, :, None]
    of_token = token * elements_of_states(FORMAT, COLUMNS)
    four = tl.arange(0, LANES * 4)[None, None, :]
    sums = tl.zeros([TOKENS, ROWS, LANES], tl.float32)
    for first in range(0, BLOCKS, LANES * 4):
        block = first + four
        here, there = (block < BLOCKS) & alive, (block < BLOCKS) & (token < tokens)
        group, member = block // TOGETHER, block % TOGETHER
        word = FIRST * WORDS + group * (TOGETHER * WORDS) + member
        state = x + (FIRST * 8 + group * (TOGETHER * 8) + member)
        whole = tl.zeros([TOKENS, ROWS, LANES * 4], tl.int32)
        for some in range(0, WORDS, UNROLL):
            for step in tl.static_range(UNROLL):
                packed = load_words(weights, start, word + (some + step) * TOGETHER, here, UNIT)
                for part in tl.static_range(PARTS):
                    nth = some + step + part * WORDS
                    of_states = tl.load(state + (of_token + nth * TOGETHER), there, other=0)
                    whole = _dot4((packed >> (part * (8 // PARTS))) & LOWEST, of_states, whole)
        if FORMAT != "q8_0":
            total = tl.load(x + (FIRST + block) + (of_token + COLUMNS // 32 * 9), there, other=0)
            whole = whole * 2 - total if FORMAT == "b1" else whole - total * 8
        place = start * (UNIT // 2) + (COLUMNS // 16 * WORDS + FIRST + block)
        scale = load_scales(weights, tl.max_contiguous(place, [1, 1, 4]), here)
        of_states = tl.load(x + (FIRST + block) + (of_token + COLUMNS // 32 * 8), there, other=0)
        sums += _by_fours(whole.to(tl.float32) * (scale * of_states.to(tl.float32, bitcast=True)))
    return tl.sum(sums, 2)


@triton.jit
def _by_fours(products):
    """Sums of four neighbours along the last axis, which one thread holds."""
    four: tl.constexpr = [products.shape[0], products.shape[1], products.shape[2] // 4, 4]
    return tl.sum(tl.reshape(products, four), 3)


@triton.constexpr_function
def elements_of_states(weight_format: str, columns: int) -> int:
    """Of what vectors of a format are multiplied with, from one token to the next; as `store_rounded` lays it out."""
    return columns if weight_format in ("bf16", "f16") else columns // 32 * 10


@triton.constexpr_function
def words_of(weight_format: str) -> int:
    """32-bit words of a block."""
    return {"q8_0": 8, "q4_0": 4, "b1": 1}[weight_format]


@triton.constexpr_function
def lowest_bits(weight_format: str) -> int:
    """Of each byte of a word, those that hold one weight."""
    return {"q8_0": -1, "q4_0": 0x0F0F0F0F, "b1": 0x01010101}[weight_format]


@triton.jit
def load_words(weights, start, place, mask, UNIT: tl.constexpr):
    """int32: the words of vectors at places within them; zeros where a mask says no."""
    if UNIT == 4:
        return tl.load(weights.to(tl.pointer_type(tl.int32)) + start + place, mask, other=None if mask is None else 0)
    else:
        halves = weights.to(tl.pointer_type(tl.uint16)) + start + place * 2
        low = tl.load(halves, mask, other=None if mask is None else 0).to(tl.int32)
        return low | (tl.load(halves + 1, mask, other=None if mask is None else 0).to(tl.int32) << 16)


@triton.jit
def load_scales(weights, place, mask):
    """fp32: the scales at places, in halves; zeros where a mask says no."""
    scales = weights.to(tl.pointer_type(tl.float16)) + place
    return tl.load(scales, mask, other=None if mask is None else 0.0).to(tl.float32)


@triton.jit
def _dot4(a, b, sums):
    """sums + the dot product of the four signed bytes of each word of a and b."""
    if DP4A:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, sums], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        left = tl.arange(0, 4)[None, None, None, :] * 8
        return sums + tl.sum(((a[:, :, :, None] << left) >> 24) * ((b[:, :, :, None] << left) >> 24), 3)


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


@triton.jit
def add_columns(
    total, factor, weights, start, place, block, mask,
    FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """total fp32 `[m, PARTS, n]` plus, times each factor `[m, 1, 1]`, weights of one vector.

    Those at places `[1, 1, n]`, which are columns, or words with several weights each; see `block_of` and `column_of`.
    A nibble is lifted into the mantissa where it is in its half of a word, and so is too large by 16 for each nibble
    before it: the sum is right once it is multiplied with `of_part`.
    """
    PARTS: tl.constexpr = parts_of(FORMAT)
    if PARTS == 1:
        w = tl.load(weights + start + place, mask, other=None if mask is None else 0.0)
        return total + factor * w.to(tl.float32)
    else:
        BITS: tl.constexpr = 32 // PARTS
        scale = load_scales(weights, start * (UNIT // 2) + (COLUMNS * 2 // PARTS + block), mask)
        words = load_words(weights, start, place, mask, UNIT).to(tl.uint32, bitcast=True)
        part = tl.arange(0, PARTS)[None, :, None]
        if FORMAT == "q8_0":
            lifted = (((words ^ 0x80808080) >> (part * BITS)) & 0xFF) | MAGIC  # signed bytes plus 128
            w = lifted.to(tl.float32, bitcast=True) - 8388736.0
        else:
            left = part % 4 * BITS
            lifted = ((words >> (part // 4 * 16)) & (0xF << left)) | MAGIC
            zero = MAGIC | (8 << left)
            w = lifted.to(tl.float32, bitcast=True) - zero.to(tl.float32, bitcast=True)
        return total + factor * scale * w


@triton.jit
def of_part(part, FORMAT: tl.constexpr):
    """fp32: what the sums of a part are multiplied with; powers of two, which change no digit."""
    exponent = 127 - part % 4 * 4 if FORMAT == "q4_0" else 127 + part * 0
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.constexpr_function
def parts_of(weight_format: str) -> int:
    """Weights of what is loaded at one place of a vector: of a float, or of a word."""
    return {"bf16": 1, "f16": 1, "q8_0": 4, "q4_0": 8}[weight_format]


@triton.jit
def block_of(place, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    """The block that what lies at a place of a vector belongs to; a float's place is as good as any other number."""
    if parts_of(FORMAT) == 1:
        return place
    else:
        group, member, together = _grouped(place, FORMAT, COLUMNS)
        return group * GROUP + member % together


@triton.jit
def column_of(place, part, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    """The column of a part of what lies at a place."""
    if parts_of(FORMAT) == 1:
        return place + part
    else:
        group, member, together = _grouped(place, FORMAT, COLUMNS)
        first = (group * GROUP + member % together) * 32 + member // together * 4
        return first + (part if FORMAT == "q8_0" else part // 2 + part % 2 * 16)


@triton.jit
def _grouped(word, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    """A word's group, its place in it, and how many blocks the group has."""
    TOGETHER: tl.constexpr = GROUP * words_of(FORMAT)
    group = word // TOGETHER
    return group, word % TOGETHER, tl.minimum(COLUMNS // 32 - group * GROUP, GROUP)
