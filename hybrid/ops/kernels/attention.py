"""Triton kernels of attention over pages of keys and values `[block, kv_head, PAGE, head_dim]`.

A page's place is `tables[token, position // PAGE]`. How long a token's text is, its position says, which only the
device knows: a grid is as large as the longest text needs, and what is past the end does nothing.

Flash-decoding (Dao et al. 2023): a text is cut into splits, each with a softmax of its own (Milakov and Gimelshein
2018); the second kernel weighs and adds what they found, in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """fp32 to the nearest number of a type; by hand for bf16, of which the interpreter cuts bits off instead."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x == x, upper, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def store_kernel(
    k, v, keys, values, positions, tables, pages, k_token, k_head, v_token, v_head,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """A token's key and value of one head into its page. Grid `[tokens, kv_heads]`."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token)
    block = tl.load(tables + token * pages + position // PAGE).to(tl.int64)
    place = tl.arange(0, WIDTH)
    within = place < HEAD_DIM
    there = ((block * KV_HEADS + head) * PAGE + position % PAGE) * HEAD_DIM + place
    key = tl.load(k + token * k_token + head * k_head + place, within, other=0.0)
    value = tl.load(v + token * v_token + head * v_head + place, within, other=0.0)
    tl.store(keys + there, _rounded(key, keys.dtype.element_ty), within)
    tl.store(values + there, _rounded(value, values.dtype.element_ty), within)


@triton.jit
def _extent(position, SPLITS: tl.constexpr, WINDOW: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """Of a token: its first key, the page boundary at or before that, blocks of `KEYS` keys from there on, blocks of a
    split."""
    first = tl.maximum(position - WINDOW + 1, 0)
    start = first // PAGE * PAGE
    blocks = (position - start) // KEYS + 1
    return first, start, blocks, (blocks + SPLITS - 1) // SPLITS


@triton.jit
def attend_kernel(
    q, keys, values, positions, tables, pages, q_token, q_head, scale, sums, weights,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    WINDOW: tl.constexpr, SPLITS: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """`HEADS` of the query heads that share one key-value head over one split of a token's keys.

    Leaves in `sums [token, head, split, HEAD_DIM]` what the values add up to and in `weights [token, head, split, 2]`
    the greatest score and the sum of the exponentials of scores less that. Grid `[tokens, kv_heads * head blocks,
    splits]`.
    """
    token = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    head_blocks: tl.constexpr = (SHARED + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // head_blocks
    shared = tl.program_id(1) % head_blocks * HEADS + tl.arange(0, HEADS)
    head = kv_head * SHARED + shared
    asked = shared < SHARED
    place = tl.arange(0, WIDTH)
    within = place < HEAD_DIM
    position = tl.load(positions + token).to(tl.int32)
    first, start, blocks, share = _extent(position, SPLITS, WINDOW, PAGE, KEYS)
    begin = split * share
    end = tl.minimum(begin + share, blocks)
    if begin < end:
        from_q = q + token * q_token + head[:, None] * q_head + place[None, :]
        query = tl.load(from_q, asked[:, None] & within[None, :], other=0.0) * scale
        greatest = tl.full((HEADS,), float("-inf"), tl.float32)
        total = tl.zeros((HEADS,), tl.float32)
        found = tl.zeros((HEADS, WIDTH), tl.float32)
        block = begin
        while block < end:
            key = start + block * KEYS + tl.arange(0, KEYS)
            seen = (key >= first) & (key <= position)
            page = tl.load(tables + token * pages + key // PAGE, seen, other=0).to(tl.int64)
            there = (((page * KV_HEADS + kv_head) * PAGE + key % PAGE) * HEAD_DIM)[:, None] + place[None, :]
            mask = seen[:, None] & within[None, :]
            k = tl.load(keys + there, mask, other=0.0).to(tl.float32)
            v = tl.load(values + there, mask, other=0.0).to(tl.float32)
            scores = tl.sum(query[:, None, :] * k[None, :, :], 2)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            above = tl.maximum(greatest, tl.max(scores, 1))
            weight = tl.exp(scores - above[:, None])
            kept = tl.exp(greatest - above)
            total = total * kept + tl.sum(weight, 1)
            found = found * kept[:, None] + tl.sum(weight[:, :, None] * v[None, :, :], 1)
            greatest = above
            block += 1
        row = (token * (KV_HEADS * SHARED) + head) * SPLITS + split
        tl.store(sums + row[:, None] * HEAD_DIM + place[None, :], found, asked[:, None] & within[None, :])
        tl.store(weights + row * 2, greatest, asked)
        tl.store(weights + row * 2 + 1, total, asked)


@triton.jit
def join_kernel(
    sums, weights, positions, y, y_token, y_head,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    WINDOW: tl.constexpr, SPLITS: tl.constexpr, ROOM: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One head of one token from its splits, those that had keys. Grid `[tokens, heads]`."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token).to(tl.int32)
    _, _, blocks, share = _extent(position, SPLITS, WINDOW, PAGE, KEYS)
    split = tl.arange(0, ROOM)
    used = split * share < blocks
    place = tl.arange(0, WIDTH)
    within = place < HEAD_DIM
    row = (token * HEADS + head) * SPLITS + split
    greatest = tl.load(weights + row * 2, used, other=float("-inf"))
    total = tl.load(weights + row * 2 + 1, used, other=0.0)
    part = tl.load(sums + row[:, None] * HEAD_DIM + place[None, :], used[:, None] & within[None, :], other=0.0)
    weight = tl.exp(greatest - tl.max(greatest, 0))
    mixed = tl.sum(weight[:, None] * part, 0) / tl.sum(weight * total, 0)
    tl.store(y + token * y_token + head * y_head + place, mixed, within)
