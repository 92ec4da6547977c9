"""Kernels over whole matrices: embeddings looked up, a state times matrices, the rows that a predictor names."""

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
    store_rounded,
)


@triton.jit
def embed_kernel(
    table, ids, offset, y, STRIDE: tl.constexpr, ADD: tl.constexpr,
    FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Row `ids[token] + offset` into, or onto, y `[tokens, COLUMNS]`. Grid `[tokens, blocks of WIDTH columns]`."""
    PARTS: tl.constexpr = parts_of(FORMAT)
    token = tl.program_id(0).to(tl.int64)
    start = (tl.load(ids + token) + offset) * STRIDE
    place = tl.program_id(1) * (WIDTH // PARTS) + tl.arange(0, WIDTH // PARTS)[None, None, :]
    within = place < COLUMNS // PARTS
    part, block = tl.arange(0, PARTS)[None, :, None], block_of(place, FORMAT, COLUMNS)
    here = y + token * COLUMNS + column_of(place, part, FORMAT, COLUMNS)
    values = tl.zeros([1, PARTS, WIDTH // PARTS], tl.float32)
    values = add_columns(values, 1.0, table, start, place, block, within, FORMAT, UNIT, COLUMNS) * of_part(part, FORMAT)
    if ADD:
        values += tl.load(here, within, other=0.0)
    tl.store(here, values, within)


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
def linear_kernel(
    x, tokens, weights, biases, ys, outputs,
    RECTIFIED: tl.constexpr, Y_STRIDES: tl.constexpr, STRIDES: tl.constexpr, COUNT: tl.constexpr,
    FORMAT: tl.constexpr, UNIT: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`ROWS` outputs of every token, of one of `COUNT` matrices. Grid `[blocks of rows of all matrices]`."""
    before = 0
    for i in tl.static_range(COUNT):
        row = (tl.program_id(0) - before) * ROWS + tl.arange(0, ROWS)
        if (tl.program_id(0) >= before) & (tl.program_id(0) < before + tl.cdiv(outputs[i], ROWS)):
            live = row < outputs[i]
            start = row.to(tl.int64) * STRIDES[i]
            for group in range(0, tokens, TOKENS):
                states, left = x + group * elements_of_states(FORMAT, COLUMNS), tokens - group
                sums = dots(weights[i], start, live, states, left, FORMAT, UNIT, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
                if biases[i] is not None:
                    sums += tl.load(biases[i] + row, live, other=0.0)[None, :]
                if RECTIFIED:
                    sums = tl.where(sums <= 0, 0.0, sums)
                token = tl.arange(0, TOKENS)[:, None]
                here = ys[i] + (group + token) * Y_STRIDES[i] + row[None, :]
                tl.store(here, sums, live[None, :] & (token < left))
        before += tl.cdiv(outputs[i], ROWS)


@triton.jit
def name_kernel(
    x, tokens, weights, bias, neuron_ids, threshold, named, named_stride, rows,
    STRIDE: tl.constexpr, FORMAT: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Whether the logits of `ROWS` rows' neurons are above the threshold. Grid `[blocks of rows]`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    neuron = tl.load(neuron_ids + row, live, other=0)
    start = neuron.to(tl.int64) * STRIDE
    token = tl.arange(0, TOKENS)[:, None]
    for group in range(0, tokens, TOKENS):
        states, left = x + group * elements_of_states(FORMAT, COLUMNS), tokens - group
        logit = dots(weights, start, live, states, left, FORMAT, UNIT, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
        if bias is not None:
            logit += tl.load(bias + neuron, live, other=0.0)[None, :]
        here = named + (group + token) * named_stride + row[None, :]
        tl.store(here, (logit > threshold).to(tl.uint8), live[None, :] & (token < left))
