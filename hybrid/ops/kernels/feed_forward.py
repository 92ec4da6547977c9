"""Kernels of the sparse feed-forward network over the rows of a bank, in three launches.

`open_kernel` computes what multiplies the down vectors, `down_kernel` adds up columns of them for chunks of rows,
`join_kernel` adds the chunks. Rows are dealt out one by one, since neighbours in a bank are active equally often; each
program picks those that are wanted out of its own by a prefix sum, so that nothing waits for a list of all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid.ops.kernels.weights import (
    add_columns,
    block_of,
    column_of,
    dots,
    elements_of_states,
    of_part,
    parts_of,
)


@triton.jit
def activated(values, ACTIVATION: tl.constexpr):
    """As `reference.activate`; NaN stays NaN."""
    if ACTIVATION == "silu":
        return values / (1.0 + tl.exp(-values))
    elif ACTIVATION == "gelu":
        return values * 0.5 * (1.0 + tl.math.erf(values * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u)) is the logistic function of 2 u
        return values / (1.0 + tl.exp(-1.5957691216057308 * (values + 0.044715 * values * values * values)))
    else:
        rectified = tl.where(values <= 0, 0.0, values)
        return rectified * rectified if ACTIVATION == "relu2" else rectified


@triton.jit
def open_kernel(
    rows, n, bias, x, tokens, named, named_stride, cutoff, values, pairs, tally, bucket_rows, first_row,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, SKIP: tl.constexpr,
    CHUNKS: tl.constexpr, ROOM: tl.constexpr, DEALT: tl.constexpr, STRIDE: tl.constexpr, VECTOR: tl.constexpr,
    FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """What multiplies each row's down vector for each token, to values fp32 `[tokens, CHUNKS, ROOM]`; see `_place`.

    Rows named for no token get zeros, and are not read. pairs: int32 `[2, programs]`, gated and finished by each
    program. tally: int64, or None: pairs that are added up, by buckets of the layer's rows, whose row `first_row` comes
    first here; whole numbers, so that no order matters. Grid `[programs]`, any number of them.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    token = tl.arange(0, TOKENS)[:, None]
    gated, finished = 0, 0
    for first in range(program, n, programs * DEALT):
        dealt = first + tl.arange(0, DEALT) * programs
        wanted = dealt < n
        if named is not None:
            some = tl.zeros([DEALT], tl.int32)
            for group in range(0, tokens, TOKENS):
                known = wanted[None, :] & (group + token < tokens)
                flags = tl.load(named + (group + token) * named_stride + dealt[None, :], known, other=0).to(tl.int32)
                some |= tl.max(flags, 0)
                gated += tl.sum(tl.sum(flags, 1), 0)
            for group in range(0, tokens, TOKENS):
                here = values + (group + token) * (CHUNKS * ROOM) + _place(dealt, CHUNKS, ROOM)[None, :]
                tl.store(here, 0.0, (wanted & (some == 0))[None, :] & (group + token < tokens))
            wanted &= some != 0
        rank = tl.cumsum(wanted.to(tl.int32), 0) - 1
        count = tl.sum(wanted.to(tl.int32), 0)
        if named is None:
            gated += count * tokens
        for at in range(0, count, ROWS):
            nth = at + tl.arange(0, ROWS)
            live = nth < count
            picked = wanted[None, :] & (rank[None, :] == nth[:, None])
            row = tl.sum(tl.where(picked, dealt[None, :], 0), 1)
            start = row.to(tl.int64) * STRIDE
            fired = tl.zeros([ROWS], tl.int32)
            for group in range(0, tokens, TOKENS):
                states, left = x + group * elements_of_states(FORMAT, COLUMNS), tokens - group
                score = dots(rows, start, live, states, left, FORMAT, UNIT, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
                if bias is not None:
                    score += tl.load(bias + row, live, other=0.0)[None, :]
                value = activated(score, ACTIVATION)
                value = tl.where(tl.abs(value) <= cutoff, 0.0, value)
                inside = live[None, :] & (token < left)
                pair = inside
                if named is not None:
                    flags = named + (group + token) * named_stride + row[None, :]
                    pair &= tl.load(flags, inside, other=0) != 0
                if SKIP:
                    pair &= value != 0
                    finished += tl.sum(tl.sum(pair.to(tl.int32), 1), 0)
                if GATED:
                    still, up = tl.max(pair.to(tl.int32), 0) != 0, start + VECTOR
                    value *= dots(rows, up, still, states, left, FORMAT, UNIT, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
                    if ACTIVATION == "drelu":
                        value = tl.where(value <= 0, 0.0, value)
                here = values + (group + token) * (CHUNKS * ROOM) + _place(row, CHUNKS, ROOM)[None, :]
                tl.store(here, tl.where(pair, value, 0.0), inside)
                if tally is not None:
                    if SKIP and ACTIVATION == "drelu":
                        pair &= value != 0
                    fired += tl.sum(pair.to(tl.int32), 0)
            if tally is not None:
                bucket = tally + (first_row + row) // bucket_rows
                tl.atomic_add(bucket, fired.to(tl.int64), live & (fired != 0), sem="relaxed")
    tl.store(pairs + program, gated)
    tl.store(pairs + programs + program, finished if SKIP else gated)


@triton.jit
def _place(row, CHUNKS: tl.constexpr, ROOM: tl.constexpr):
    """Where a row's values lie: `[CHUNKS, ROOM]`, rows dealt out to chunks one by one."""
    return row % CHUNKS * ROOM + row // CHUNKS


@triton.jit
def down_kernel(
    rows, n, tokens, named, named_stride, values, lists, sums,
    SKIP: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr, LISTED: tl.constexpr, STRIDE: tl.constexpr,
    VECTOR: tl.constexpr, FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
    WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A chunk's rows times their values, of `WIDTH` columns, to sums fp32 `[CHUNKS, tokens, column blocks, WIDTH]`.

    Rows are added one after the other, so that no sum of a token depends on what other tokens want. lists: int32
    `[token groups, CHUNKS, column blocks, ROOM]`. Grid `[CHUNKS, column blocks, groups of TOKENS]`.
    """
    PARTS: tl.constexpr = parts_of(FORMAT)
    chunk, block, blocks, group = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2) * TOKENS
    count = (n - chunk + CHUNKS - 1) // CHUNKS
    values += group * (CHUNKS * ROOM) + chunk * ROOM
    lists += ((tl.program_id(2) * CHUNKS + chunk) * blocks + block) * ROOM
    left = tokens - group
    if SKIP or named is not None:
        token = tl.arange(0, TOKENS)[:, None]
        found = 0
        for first in range(0, count, LISTED):
            nth = first + tl.arange(0, LISTED)
            if SKIP:
                here = values + token * (CHUNKS * ROOM) + nth[None, :]
                pairs = tl.load(here, (nth < ROOM)[None, :] & (token < left), other=0.0) != 0
            else:
                here = named + (group + token) * named_stride + (chunk + nth * CHUNKS)[None, :]
                pairs = tl.load(here, (nth < count)[None, :] & (token < left), other=0) != 0
            wanted = tl.where(nth < count, tl.max(pairs.to(tl.int32), 0), 0)
            tl.store(lists + found + tl.cumsum(wanted, 0) - 1, nth, wanted != 0)
            found += tl.sum(wanted, 0)
        count = found
        tl.debug_barrier()  # for what other threads of this program have written
    token = tl.arange(0, TOKENS)[:, None, None]
    place = block * (WIDTH // PARTS) + tl.arange(0, WIDTH // PARTS)[None, None, :]
    of_block = block_of(place, FORMAT, COLUMNS)
    total = tl.zeros([TOKENS, PARTS, WIDTH // PARTS], tl.float32)
    whole = count - count % UNROLL
    for rest in tl.static_range(2):  # rows in whole batches, whose loads need no masks, and those that are left
        for at in range(0 if rest == 0 else whole, whole if rest == 0 else count, UNROLL // (rest + 1)):
            for step in tl.static_range(UNROLL // (rest + 1)):
                nth = at + step
                live = None
                within = None
                if rest == 1:
                    live = nth < count  # a scalar, which the interpreter takes into no mask
                    within = place < tl.where(live, COLUMNS // PARTS, 0)
                elif COLUMNS % WIDTH > 0:
                    within = place < COLUMNS // PARTS
                if SKIP or named is not None:
                    nth = tl.load(lists + nth, live, other=None if rest == 0 else 0)
                factor = tl.zeros([TOKENS, 1, 1], tl.float32)
                for t in tl.static_range(TOKENS):  # what is past the tokens is not stored
                    value = tl.load(values + t * (CHUNKS * ROOM) + nth, live, other=None if rest == 0 else 0.0)
                    factor = tl.where(token == t, value, factor)
                start = (chunk + nth * CHUNKS).to(tl.int64) * STRIDE + VECTOR
                total = add_columns(total, factor, rows, start, place, of_block, within, FORMAT, UNIT, COLUMNS)
    part = tl.arange(0, PARTS)[None, :, None]
    here = sums + ((chunk * tokens + group + token) * blocks + block) * WIDTH
    here += part * (WIDTH // PARTS) + tl.arange(0, WIDTH // PARTS)[None, None, :]
    tl.store(here, total * of_part(part, FORMAT), token < left)


@triton.jit
def join_kernel(
    sums, y, pairs, programs, counts, ADD: tl.constexpr, CHUNKS: tl.constexpr, FORMAT: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TAKEN: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """y `[tokens, COLUMNS]` of the sums of all chunks, in their order. Grid `[tokens, TAKEN of all columns]`.

    The first token's programs add up the pairs too, `COUNTED` each, so that few of them meet at `counts`.
    """
    PARTS: tl.constexpr = parts_of(FORMAT)
    token, tokens = tl.program_id(0), tl.num_programs(0)
    counted = tl.program_id(1) * COUNTED + tl.arange(0, COUNTED)
    known = counted < tl.where(token == 0, programs, 0)
    gated = tl.load(pairs + counted, known, other=0)
    finished = tl.load(pairs + programs + counted, known, other=0)
    padded = (COLUMNS + WIDTH - 1) // WIDTH * WIDTH
    nth = tl.program_id(1) * TAKEN + tl.arange(0, TAKEN)
    total = tl.zeros([TAKEN], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        total += tl.load(sums + (chunk * tokens + token) * padded + nth, nth < padded, other=0.0)
    place = nth // WIDTH * (WIDTH // PARTS) + nth % (WIDTH // PARTS)
    column = column_of(place, nth % WIDTH // (WIDTH // PARTS), FORMAT, COLUMNS)
    within = (nth < padded) & (place < COLUMNS // PARTS)
    here = y + token * COLUMNS + column
    if ADD:
        total += tl.load(here, within, other=0.0)
    tl.store(here, total, within)
    if token == 0:
        tl.atomic_add(counts, tl.sum(gated, 0).to(tl.int64))
        tl.atomic_add(counts + 1, tl.sum(finished, 0).to(tl.int64))
