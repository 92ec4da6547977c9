"""Kernels over whole matrices: embeddings looked up, a state times matrices, the rows that a predictor names."""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid.ops.kernels.weights import dots


@triton.jit
def embed_kernel(table, stride, ids, offset, y, COLUMNS: tl.constexpr, ADD: tl.constexpr, WIDTH: tl.constexpr):
    """Row `ids[token] + offset` into, or onto, y `[tokens, COLUMNS]`. Grid `[tokens, blocks of WIDTH columns]`."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token) + offset
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = place < COLUMNS
    values = tl.load(table + row * stride + place, within, other=0.0).to(tl.float32)
    here = y + token * COLUMNS + place
    if ADD:
        values += tl.load(here, within, other=0.0)
    tl.store(here, values, within)


@triton.jit
def linear_kernel(
    x, tokens, weights, stride, bias, y, y_stride, outputs,
    BIASED: tl.constexpr, RECTIFIED: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`ROWS` outputs of every token. Grid `[blocks of rows]`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < outputs
    token = tl.arange(0, TOKENS)[:, None]
    sums = dots(weights, row.to(tl.int64) * stride, live, x, tokens, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
    if BIASED:
        sums += tl.load(bias + row, live, other=0.0)[None, :]
    if RECTIFIED:
        sums = tl.where(sums <= 0, 0.0, sums)
    tl.store(y + token * y_stride + row[None, :], sums, live[None, :] & (token < tokens))


@triton.jit
def name_kernel(
    x, tokens, weights, stride, bias, neuron_ids, threshold, named, named_stride, rows,
    BIASED: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Whether the logits of `ROWS` rows' neurons are above the threshold. Grid `[blocks of rows]`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    token = tl.arange(0, TOKENS)[:, None]
    neuron = tl.load(neuron_ids + row, live, other=0).to(tl.int64)
    logits = dots(weights, neuron * stride, live, x, tokens, COLUMNS, TOKENS, ROWS, LANES, UNROLL)
    if BIASED:
        logits += tl.load(bias + neuron, live, other=0.0)[None, :]
    above = (logits > threshold).to(tl.uint8)
    tl.store(named + token * named_stride + row[None, :], above, live[None, :] & (token < tokens))
