"""Kernels of the sparse feed-forward network over the rows of a bank, in three launches.

`open_kernel` computes what multiplies the down vectors, `down_kernel` adds up columns of them for chunks of rows,
`join_kernel` adds the chunks. Rows are dealt out one by one, since neighbours in a bank are active equally often; each
program picks those that are wanted out of its own by a prefix sum, so that nothing waits for a list of all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid.ops.kernels.weights import dots


@triton.jit
def activated(values, ACTIVATION: tl.constexpr):
    """As `reference.activate`; NaN stays NaN."""
    if ACTIVATION == "silu":
        return values / (1.0 + tl.exp(-values))
    if ACTIVATION == "gelu":
        return values * 0.5 * (1.0 + tl.math.erf(values * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u)) is the logistic function of 2 u
        return values / (1.0 + tl.exp(-1.5957691216057308 * (values + 0.044715 * values * values * values)))
    rectified = tl.where(values <= 0, 0.0, values)
    if ACTIVATION == "relu2":
        return rectified * rectified
    return rectified


@triton.jit
def open_kernel(
    rows, stride, n, bias, x, tokens, named, named_stride, cutoff, values, counts,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, BIASED: tl.constexpr, NAMED: tl.constexpr, SKIP: tl.constexpr,
    CHUNKS: tl.constexpr, ROOM: tl.constexpr, DEALT: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """values: fp32 `[tokens, CHUNKS, ROOM]`: of every row its place in its chunk. Grid `[programs]`, any number."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    token = tl.arange(0, TOKENS)[:, None]
    gated = tl.zeros([TOKENS, ROWS], tl.int64)
    finished = tl.zeros([TOKENS, ROWS], tl.int64)
    for first in range(program, n, programs * DEALT):
        dealt = first + tl.arange(0, DEALT) * programs
        wanted = dealt < n
        if NAMED:
            inside = wanted[None, :] & (token < tokens)
            flags = tl.load(named + token * named_stride + dealt[None, :], inside, other=0)
            wanted = tl.max(flags.to(tl.int32), 0) != 0
            here = values + token * (CHUNKS * ROOM) + (dealt % CHUNKS * ROOM + dealt // CHUNKS)[None, :]
            tl.store(here, 0.0, inside & (wanted == 0)[None, :])
        rank = tl.cumsum(wanted.to(tl.int32), 0) - 1
        count = tl.sum(wanted.to(tl.int32), 0)
        for at in range(0, count, ROWS):
            nth = at + tl.arange(0, ROWS)
            live = nth < count
            picked = wanted[None, :] & (rank[None, :] == nth[:, None])
            row = tl.sum(tl.where(picked, dealt[None, :], 0), 1)
            start = row.to(tl.int64) * stride
            scores = dots(rows, start, live, x, tokens, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
            if BIASED:
                scores += tl.load(bias + row, live, other=0.0)[None, :]
            value = activated(scores, ACTIVATION)
            value = tl.where(tl.abs(value) <= cutoff, 0.0, value)
            inside = live[None, :] & (token < tokens)
            pair = inside
            if NAMED:
                pair &= tl.load(named + token * named_stride + row[None, :], inside, other=0) != 0
            gated += pair.to(tl.int64)
            if SKIP:
                pair &= value != 0
            finished += pair.to(tl.int64)
            if GATED:
                still = tl.max(pair.to(tl.int32), 0) != 0
                value *= dots(rows, start + COLUMNS, still, x, tokens, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
                if ACTIVATION == "drelu":
                    value = tl.where(value <= 0, 0.0, value)
            here = values + token * (CHUNKS * ROOM) + (row % CHUNKS * ROOM + row // CHUNKS)[None, :]
            tl.store(here, tl.where(pair, value, 0.0), inside)
    tl.atomic_add(counts, tl.sum(tl.sum(gated, 1), 0))
    tl.atomic_add(counts + 1, tl.sum(tl.sum(finished, 1), 0))


@triton.jit
def down_kernel(
    rows, stride, n, first_column, tokens, named, named_stride, values, lists, sums,
    NAMED: tl.constexpr, SKIP: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr, DEALT: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """sums: fp32 `[CHUNKS, tokens, COLUMNS]`; lists: int32 `[CHUNKS, blocks, ROOM]`. Grid `[CHUNKS, column blocks]`.

    A program adds one row after the other, so that no sum of a token depends on what other tokens want.
    """
    chunk = tl.program_id(0)
    count = (n - chunk + CHUNKS - 1) // CHUNKS
    token = tl.arange(0, TOKENS)
    values += chunk * ROOM
    mine = lists + (chunk * tl.num_programs(1) + tl.program_id(1)) * ROOM
    if SKIP or NAMED:
        found = 0
        for first in range(0, count, DEALT):
            nth = first + tl.arange(0, DEALT)
            inside = (nth < count)[None, :] & (token < tokens)[:, None]
            if SKIP:
                pairs = tl.load(values + (token * (CHUNKS * ROOM))[:, None] + nth[None, :], inside, other=0.0) != 0
            else:
                there = (token * named_stride)[:, None] + (chunk + nth * CHUNKS)[None, :]
                pairs = tl.load(named + there, inside, other=0) != 0
            wanted = tl.max(pairs.to(tl.int32), 0) != 0
            rank = tl.cumsum(wanted.to(tl.int32), 0) - 1
            tl.store(mine + found + rank, nth, wanted)
            found += tl.sum(wanted.to(tl.int32), 0)
        count = found
        tl.debug_barrier()  # what other threads of this program have written
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < COLUMNS
    total = tl.zeros([TOKENS, WIDTH], tl.float32)
    for at in range(0, count, UNROLL):
        for step in tl.static_range(UNROLL):
            nth = at + step
            live = nth < count  # a scalar; the interpreter takes it into no mask
            if SKIP or NAMED:
                nth = tl.load(mine + nth, live, other=0)
            there = token < tl.where(live, tokens, 0)
            factor = tl.load(values + token * (CHUNKS * ROOM) + nth, there, other=0.0)
            start = (chunk + nth * CHUNKS).to(tl.int64) * stride + first_column
            w = tl.load(rows + start + column, column < tl.where(live, COLUMNS, 0), other=0.0)
            total += factor[:, None] * w.to(tl.float32)[None, :]
    here = sums + (chunk * tokens + token[:, None]) * COLUMNS + column[None, :]
    tl.store(here, total, (token < tokens)[:, None] & within[None, :])


@triton.jit
def join_kernel(
    sums, y, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """y `[tokens, COLUMNS]` of the sums of all chunks, in their order. Grid `[tokens, column blocks]`."""
    token, tokens = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < COLUMNS
    total = tl.zeros([WIDTH], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        total += tl.load(sums + (chunk * tokens + token) * COLUMNS + column, within, other=0.0)
    here = y + token * COLUMNS + column
    if ADD:
        total += tl.load(here, within, other=0.0)
    tl.store(here, total, within)
