"""The device operators that read weights, in Triton: embeddings, projections, predictors, the sparse feed-forward.

As every device operator: outputs and scratch are given, nothing is allocated and nothing waits, so that a call can be
part of a CUDA graph. The number of tokens is `len(x)`; activations are fp32. A token's bits are the same in every run,
alone and among others. Under TRITON_INTERPRET=1 tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from hybrid.ops.bank import RowBank
from hybrid.ops.kernels.feed_forward import down_kernel, join_kernel, open_kernel
from hybrid.ops.kernels.projections import embed_kernel, linear_kernel, name_kernel
from hybrid.ops.limits import NATIVE_TOKENS
from hybrid.ops.scratch import Scratch
from profiler.matrix import Matrix
from profiler.predictor import Predictor

Output = tuple[Matrix, torch.Tensor | None, torch.Tensor]  # a matrix, its bias if any, and where its products go


def embed(table: Matrix, ids: torch.Tensor, y: torch.Tensor, offset: int = 0, add: bool = False) -> None:
    """Rows `ids + offset` of a table into y, or added to it.

    ids: int64 `[tokens]`, rows of the table once `offset` is added (not checked: they are on the device);
    y: fp32 `[tokens, columns]`, contiguous.
    """
    _check_states(y, table.columns)
    if ids.shape != (len(y),) or ids.dtype != torch.int64 or not ids.is_contiguous():
        raise ValueError(f"ids are int64 [{len(y)}], not {_described(ids)}")
    width = 1024
    embed_kernel[(len(y), triton.cdiv(table.columns, width))](
        table.data, table.data.stride(0), ids, offset, y, COLUMNS=table.columns, ADD=add, WIDTH=width
    )


def linear(x: torch.Tensor, projections: Sequence[Output], scratch: Scratch) -> None:
    """`y = x @ weight.T + bias` of one or several matrices; see `reference.linear`.

    x: fp32 `[tokens, in]`, contiguous; of each projection the matrix `[out, in]`, a bias fp32 `[out]` or None, and
    y: fp32 `[tokens, out]`, whose tokens may lie apart.
    """
    for weight, bias, y in projections:
        _linear(x, weight, bias, y, rectified=False)


def _linear(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, y: torch.Tensor, rectified: bool) -> None:
    _check_states(x, weight.columns)
    if y.shape != (len(x), weight.rows) or y.dtype != torch.float32 or y.stride(1) != 1:
        raise ValueError(f"products are float32 [{len(x)}, {weight.rows}], not {_described(y)}")
    _check_bias(bias, weight.rows)
    tile = _tile(len(x), weight.columns)
    linear_kernel[(triton.cdiv(weight.rows, tile["ROWS"]),)](
        x, len(x), weight.data, weight.data.stride(0), bias, y, y.stride(0), weight.rows,
        BIASED=bias is not None, RECTIFIED=rectified, COLUMNS=weight.columns, **tile, num_warps=1,
    )  # fmt: skip


def predict(
    x: torch.Tensor, predictor: Predictor, neuron_ids: torch.Tensor, named: torch.Tensor, scratch: Scratch
) -> None:
    """The rows that each token's state names, as `hybrid.predictors.rows.RowPredictor` does.

    x: fp32 `[tokens, hidden]`, contiguous; predictor: with its matrices on the device, by neuron id; neuron_ids: int32
    `[rows]`, the neuron of each row; named: bool `[tokens, rows]` to fill, whose tokens may lie apart.
    """
    rows = len(neuron_ids)
    if named.shape != (len(x), rows) or named.dtype != torch.bool or named.stride(1) != 1:
        raise ValueError(f"named rows are bool [{len(x)}, {rows}], not {_described(named)}")
    if neuron_ids.dtype != torch.int32 or not neuron_ids.is_contiguous():
        raise ValueError(f"neuron ids are int32 [rows], not {_described(neuron_ids)}")
    if predictor.fc2 is None:
        named.fill_(predictor.threshold < 0)
        return
    if predictor.fc1 is not None:
        between = scratch.get("predictor", (NATIVE_TOKENS, predictor.rank), torch.float32)[: len(x)]
        _linear(x, predictor.fc1, None, between, rectified=predictor.family == "perceptron")
        x = between
    weight, bias = predictor.fc2, predictor.bias
    _check_states(x, weight.columns)
    _check_bias(bias, weight.rows)
    tile = _tile(len(x), weight.columns)
    name_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        x, len(x), weight.data, weight.data.stride(0), bias, neuron_ids, predictor.threshold,
        named.view(torch.uint8), named.stride(0), rows,
        BIASED=bias is not None, COLUMNS=weight.columns, **tile, num_warps=1,
    )  # fmt: skip


def sparse_ffn(
    bank: RowBank,
    x: torch.Tensor,
    named: torch.Tensor | None,
    skip_inactive: bool,
    y: torch.Tensor,
    counts: torch.Tensor,
    scratch: Scratch,
    add: bool = False,
) -> None:
    """What the bank's rows contribute into y, or added to it; see `reference.sparse_ffn`.

    x, y: fp32 `[tokens, hidden]`, contiguous; named: bool `[tokens, len(bank)]`, perhaps a slice of the columns of a
    wider one, or None; counts: int64 `[2]`, to which the pairs gated and finished are added (`bank.Counts`).
    """
    rows, bias = bank.memory
    tokens, n, hidden = len(x), len(bank), bank.hidden
    _check_states(x, hidden)
    _check_states(y, hidden)
    if len(y) != tokens:
        raise ValueError(f"y is of {len(y)} tokens, x of {tokens}")
    if counts.shape != (2,) or counts.dtype != torch.int64:
        raise ValueError(f"counts are int64 [2], not {_described(counts)}")
    if named is not None and (named.shape != (tokens, n) or named.dtype != torch.bool or named.stride(1) != 1):
        raise ValueError(f"named rows are bool [{tokens}, {n}], not {_described(named)}")
    if not n:
        if not add:
            y.zero_()
        return
    tile = _tile(tokens, hidden)
    width = 256
    blocks = triton.cdiv(hidden, width)
    chunks = max(1, 512 // blocks)
    room = triton.cdiv(n, chunks)
    values = scratch.get("values of rows", (NATIVE_TOKENS, chunks, room), torch.float32)
    lists = scratch.get("rows to add", (chunks, blocks, room), torch.int32)
    sums = scratch.get("sums of chunks", (chunks, NATIVE_TOKENS, hidden), torch.float32)
    flags = None if named is None else named.view(torch.uint8)
    flags_stride = 0 if named is None else named.stride(0)
    stride = bank.stride_bytes // rows.element_size()
    common = {"NAMED": named is not None, "SKIP": skip_inactive, "CHUNKS": chunks, "ROOM": room, "COLUMNS": hidden}
    open_kernel[(16,)](
        rows, stride, n, bias, x, tokens, flags, flags_stride, bank.cutoff, values, counts,
        GATED=bank.gated, ACTIVATION=bank.activation, BIASED=bias is not None, DEALT=64, **common, **tile, num_warps=1,
    )  # fmt: skip
    first_column = (2 if bank.gated else 1) * hidden
    down_kernel[(chunks, blocks)](
        rows, stride, n, first_column, tokens, flags, flags_stride, values, lists, sums,
        DEALT=512, TOKENS=tile["TOKENS"], WIDTH=width, UNROLL=8, **common, num_warps=1,
    )  # fmt: skip
    join_kernel[(tokens, triton.cdiv(hidden, 128))](
        sums, y, COLUMNS=hidden, CHUNKS=chunks, WIDTH=128, ADD=add, num_warps=1
    )


def _tile(tokens: int, columns: int) -> dict[str, int]:
    lanes = min(32, triton.next_power_of_2(triton.cdiv(columns, 8)))
    return {"TOKENS": triton.next_power_of_2(tokens), "ROWS": 4, "LANES": lanes, "UNROLL": 4}


def _check_states(x: torch.Tensor, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"states are contiguous float32 [tokens, {width}], not {_described(x)}")
    if not 1 <= len(x) <= NATIVE_TOKENS:
        raise ValueError(f"a step has 1 to {NATIVE_TOKENS} tokens, not {len(x)}")


def _check_bias(bias: torch.Tensor | None, outputs: int) -> None:
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"a bias is contiguous float32 [{outputs}], not {_described(bias)}")


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} with strides {x.stride()}"
