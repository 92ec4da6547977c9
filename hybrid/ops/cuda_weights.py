"""The device operators that read weights, in Triton: embeddings, projections, predictors, the sparse feed-forward.

As every device operator: outputs and scratch are given, nothing is allocated and nothing waits, so that a call can be
part of a CUDA graph. The number of tokens is `len(x)`; activations are fp32. A token's bits are the same in every run,
alone and among others. Under TRITON_INTERPRET=1 tensors are on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton

from hybrid.ops.bank import Buckets, RowBank
from hybrid.ops.kernels.feed_forward import down_kernel, join_kernel, open_kernel
from hybrid.ops.kernels.projections import embed_kernel, linear_kernel, name_kernel
from hybrid.ops.kernels.rounding import round_kernel
from hybrid.ops.kernels.tiles import DOT_TOKENS, EMBEDDED, JOINED, ROUNDED, dot_tile, down_tile
from hybrid.ops.limits import MOST_DEALING, NATIVE_TOKENS
from hybrid.ops.scratch import Scratch
from profiler.formats import BLOCK, is_quantised, vector_bytes
from profiler.matrix import WEIGHT_FORMATS, Matrix
from profiler.predictor import Predictor

Output = tuple[Matrix, torch.Tensor | None, torch.Tensor]  # a matrix, its bias if any, and where its products go
TOGETHER = 3  # matrices that one launch takes


def embed(table: Matrix, ids: torch.Tensor, y: torch.Tensor, offset: int = 0, add: bool = False) -> None:
    """Rows `ids + offset` of a table into y, or added to it. One launch.

    ids: int64 `[tokens]`, rows of the table once `offset` is added (not checked: they are on the device);
    y: fp32 `[tokens, columns]`, contiguous.
    """
    columns, weight_format = table.columns, table.weight_format
    _check_states(y, columns)
    if weight_format not in WEIGHT_FORMATS:
        raise ValueError(f"a table of embeddings is not in {weight_format}")
    if ids.shape != (len(y),) or ids.dtype != torch.int64 or not ids.is_contiguous():
        raise ValueError(f"ids are int64 [{len(y)}], not {_described(ids)}")
    unit, stride = _addressed(table.data, weight_format, table.stride_bytes)
    embed_kernel[(len(y), triton.cdiv(columns, EMBEDDED))](
        table.data, ids, offset, y, STRIDE=stride, ADD=add, FORMAT=weight_format, UNIT=unit, COLUMNS=columns,
        WIDTH=EMBEDDED, num_warps=1,
    )  # fmt: skip


def linear(x: torch.Tensor, projections: Sequence[Output], scratch: Scratch) -> None:
    """`y = x @ weight.T + bias` of one or several matrices; see `reference.linear`.

    x: fp32 `[tokens, in]`, contiguous; of each projection the matrix `[out, in]`, a bias fp32 `[out]` or None, and
    y: fp32 `[tokens, out]`, whose tokens may lie apart. One launch for up to three matrices of a format, and one before
    where x is rounded for them.
    """
    groups: dict[tuple[str, int], list[tuple[Output, int]]] = {}
    for output in projections:
        weight, bias, y = output
        _check_states(x, weight.columns)
        _check_bias(bias, weight.rows)
        if y.shape != (len(x), weight.rows) or y.dtype != torch.float32 or y.stride(1) != 1:
            raise ValueError(f"products are float32 [{len(x)}, {weight.rows}], not {_described(y)}")
        unit, stride = _addressed(weight.data, weight.weight_format, weight.stride_bytes)
        groups.setdefault((weight.weight_format, unit), []).append((output, stride))
    rounded = None
    for (weight_format, unit), members in groups.items():
        if rounded is None and is_quantised(weight_format):
            rounded = _rounded(x, weight_format, scratch)
        states = rounded if rounded is not None and is_quantised(weight_format) else x
        for first in range(0, len(members), TOGETHER):
            outputs, strides = zip(*members[first : first + TOGETHER], strict=True)
            _multiply(states, outputs, strides, unit)


def predict(
    x: torch.Tensor, predictor: Predictor, neuron_ids: torch.Tensor, named: torch.Tensor, scratch: Scratch
) -> None:
    """The rows that each token's state names, as `hybrid.predictors.rows.RowPredictor` finds them.

    x: fp32 `[tokens, hidden]`, contiguous; predictor: with its matrices on the device, by neuron id; neuron_ids: int32
    `[rows]`, the neuron of each row; named: bool `[tokens, rows]` to fill, whose tokens may lie apart. One launch for
    each matrix, and one before where what it is multiplied with is rounded for it.
    """
    rows = len(neuron_ids)
    _check_states(x, predictor.hidden)
    _check_named(named, len(x), rows)
    if neuron_ids.shape != (predictor.neurons,) or neuron_ids.dtype != torch.int32 or not neuron_ids.is_contiguous():
        raise ValueError(f"neuron ids are int32 [{predictor.neurons}], not {_described(neuron_ids)}")
    fc1, fc2, bias = predictor.fc1, predictor.fc2, predictor.bias
    if fc2 is None:
        named.fill_(predictor.threshold < 0)
        return
    if fc1 is not None:
        between = scratch.get("between predictor's matrices", (NATIVE_TOKENS, fc1.rows), torch.float32)[: len(x)]
        unit, stride = _addressed(fc1.data, fc1.weight_format, fc1.stride_bytes)
        x = _rounded(x, fc1.weight_format, scratch)
        _multiply(x, [(fc1, None, between)], [stride], unit, rectified=predictor.family == "perceptron")
        x = between
    _check_bias(bias, fc2.rows)
    tokens, tile = len(x), dot_tile(fc2.weight_format, fc2.columns, len(x))
    unit, stride = _addressed(fc2.data, fc2.weight_format, fc2.stride_bytes)
    name_kernel[(triton.cdiv(rows, tile.rows),)](
        _rounded(x, fc2.weight_format, scratch), tokens, fc2.data, bias, neuron_ids, predictor.threshold,
        named.view(torch.uint8), named.stride(0), rows, STRIDE=stride,
        FORMAT=fc2.weight_format, UNIT=unit, COLUMNS=fc2.columns, **tile.arguments, enable_fp_fusion=True,
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
    buckets: Buckets | None = None,
) -> None:
    """What the bank's rows contribute into y, or added to it; see `reference.sparse_ffn`.

    x, y: fp32 `[tokens, hidden]`, contiguous; named: bool `[tokens, len(bank)]`, perhaps a slice of the columns of a
    wider one, or None; counts: int64 `[2]`, to which the pairs gated and finished are added (`bank.Counts`); buckets:
    where pairs that are added up are counted, or None. Three launches, and one before where x is rounded.

    Raises:
        RuntimeError: the bank is closed.
    """
    rows, bias = bank.memory
    tokens, n, hidden, weight_format = len(x), len(bank), bank.hidden, bank.weight_format
    for states in (x, y):
        _check_states(states, hidden)
    if len(y) != tokens:
        raise ValueError(f"y is of {len(y)} tokens, x of {tokens}")
    if counts.shape != (2,) or counts.dtype != torch.int64 or not counts.is_contiguous():
        raise ValueError(f"counts are int64 [2], not {_described(counts)}")
    if named is not None:
        _check_named(named, tokens, n)
    if not n:
        if not add:
            y.zero_()
        return
    dots, down = dot_tile(weight_format, hidden, tokens), down_tile(weight_format, hidden, n, tokens)
    cut = down.cut
    values = scratch.get("values of rows", (NATIVE_TOKENS, cut.chunks, cut.room), torch.float32)
    lists = scratch.get("rows to add", (NATIVE_TOKENS // DOT_TOKENS, cut.chunks, cut.blocks, cut.room), torch.int32)
    sums = scratch.get("sums of chunks", (cut.chunks, NATIVE_TOKENS, cut.blocks, cut.width), torch.float32)
    pairs = scratch.get("pairs of programs", (2, MOST_DEALING), torch.int32)
    programs, joining = min(dots.programs * _multiprocessors(x.device), MOST_DEALING), cut.blocks * cut.width // JOINED
    vector = vector_bytes(weight_format, hidden)
    unit, stride = _addressed(rows, weight_format, bank.stride_bytes, vector)
    flags = (None, 0) if named is None else (named.view(torch.uint8), named.stride(0))
    dealt = {"SKIP": skip_inactive, "CHUNKS": cut.chunks, "ROOM": cut.room}
    layout = {"STRIDE": stride, "FORMAT": weight_format, "UNIT": unit, "COLUMNS": hidden, "enable_fp_fusion": True}
    open_kernel[(programs,)](
        rows, n, bias, _rounded(x, weight_format, scratch), tokens, *flags, bank.cutoff, values, pairs,
        None if buckets is None else buckets.counts, 1 if buckets is None else buckets.rows, bank.first_row,
        GATED=bank.gated, ACTIVATION=bank.activation, DEALT=dots.dealt, VECTOR=vector // unit,
        **dealt, **layout, **dots.arguments,
    )  # fmt: skip
    down_kernel[(cut.chunks, cut.blocks, triton.cdiv(tokens, down.tokens))](
        rows, n, tokens, *flags, values, lists, sums, VECTOR=(2 if bank.gated else 1) * vector // unit,
        **dealt, **layout, **down.arguments,
    )  # fmt: skip
    join_kernel[(tokens, joining)](
        sums, y, pairs, programs, counts, ADD=add, CHUNKS=cut.chunks, FORMAT=weight_format, COLUMNS=hidden,
        WIDTH=cut.width, TAKEN=JOINED, COUNTED=triton.next_power_of_2(triton.cdiv(programs, joining)), num_warps=1,
    )  # fmt: skip


def _rounded(x: torch.Tensor, weight_format: str, scratch: Scratch) -> torch.Tensor:
    """What matrices of a format are multiplied with; see `kernels.rounding`."""
    if not is_quantised(weight_format):
        return x
    tokens, columns = x.shape
    y = scratch.get("rounded states", (NATIVE_TOKENS, columns // BLOCK * 10), torch.int32)
    parts = triton.cdiv(columns // BLOCK, ROUNDED)
    round_kernel[(tokens, parts)](x, y, COLUMNS=columns, BLOCKS=ROUNDED, num_warps=1, enable_fp_fusion=False)
    return y


def _multiply(
    states: torch.Tensor, outputs: Sequence[Output], strides: Sequence[int], unit: int, rectified: bool = False
) -> None:
    """Products with matrices of one format that are addressed in the same unit."""
    matrices = [weight for weight, _, _ in outputs]
    tokens, columns, weight_format = len(outputs[0][2]), matrices[0].columns, matrices[0].weight_format
    tile = dot_tile(weight_format, columns, tokens)
    linear_kernel[(sum(triton.cdiv(matrix.rows, tile.rows) for matrix in matrices),)](
        states, tokens, tuple(matrix.data for matrix in matrices), tuple(bias for _, bias, _ in outputs),
        tuple(y for _, _, y in outputs), tuple(matrix.rows for matrix in matrices),
        RECTIFIED=rectified, Y_STRIDES=tuple(y.stride(0) for _, _, y in outputs), STRIDES=tuple(strides),
        COUNT=len(outputs), FORMAT=weight_format, UNIT=unit, COLUMNS=columns, **tile.arguments, enable_fp_fusion=True,
    )  # fmt: skip


def _addressed(data: torch.Tensor, weight_format: str, stride: int, vector: int = 0) -> tuple[int, int]:
    """The unit in bytes in which kernels address weights, and the stride of rows in units, given it in bytes.

    Raises:
        ValueError: blocks lie at odd bytes.
    """
    if not is_quantised(weight_format):
        return data.element_size(), stride // data.element_size()
    places = (data.data_ptr(), stride, vector)
    unit = next((size for size in (4, 2) if all(place % size == 0 for place in places)), 1)
    if unit == 1:
        raise ValueError(f"{weight_format} weights lie at even addresses, not at {places[0]:#x} with stride {stride}")
    return unit, stride // unit


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; the interpreter has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _check_states(x: torch.Tensor, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"states are contiguous float32 [tokens, {width}], not {_described(x)}")
    if not 1 <= len(x) <= NATIVE_TOKENS:
        raise ValueError(f"a step has 1 to {NATIVE_TOKENS} tokens, not {len(x)}")


def _check_named(named: torch.Tensor, tokens: int, rows: int) -> None:
    if named.shape != (tokens, rows) or named.dtype != torch.bool or (rows > 1 and named.stride(1) != 1):
        raise ValueError(f"named rows are bool [{tokens}, {rows}], one after the other, not {_described(named)}")


def _check_bias(bias: torch.Tensor | None, outputs: int) -> None:
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"a bias is contiguous float32 [{outputs}], not {_described(bias)}")


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} with strides {x.stride()}"
