"""What every backend of the operators shares: a bank of feed-forward rows, and what an operator counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hybrid.spec import ACTIVATIONS, Activation
from profiler.formats import WEIGHT_FORMATS, vector_bytes
from profiler.matrix import DTYPES


@dataclass(frozen=True)
class Counts:
    """Pairs of token and row of one sparse feed-forward call.

    gated: the first projection (the gate; without one, up) was computed, which is every named pair.
    finished: the activation was not skipped: with a gate, the up projection was computed as well. The down vectors of
        these are read, under drelu of those whose up projection is positive.
    """

    gated: int
    finished: int


@dataclass(frozen=True, eq=False)
class Buckets:
    """Where operators count how often a layer's rows are added up; see `hybrid.runtime.tally`.

    counts: int64 `[buckets]`, of all rows of the layer, where the bank is. rows: of a bucket, a power of two.
    """

    counts: torch.Tensor
    rows: int


class RowBank:
    """Rows of one layer on one unit: a contiguous range, checked once and then used by address.

    The bank keeps its memory alive until `close`; an operator that is handed a closed bank raises RuntimeError. Its
    sizes can still be read: `len(bank)` rows, `bytes` of rows and bias, padding between rows included. `buckets` may be
    set before operators are recorded: they count there which rows they add up.

    Args:
        rows: `[n, stride]` on any device, 16-bit floats or, of a quantised format, bytes; each row is the vectors
            [gate | up | down] or [up | down] and may be padded. A view of mapped memory is as good as any.
        weight_format: of the vectors; see `profiler.blocks` for those of blocks.
        hidden: weights of one vector.
        gated: whether rows have a gate.
        activation: of the gate, or without one of the up projection.
        bias: fp32 `[n]`, added to the up projection before the activation; for rows without a gate only.
        first_row: the place of the bank's first row in its layer.
        cutoff: activations of at most this magnitude count as zero; see `cutoff`.

    Raises:
        ValueError: shapes, types, strides or devices do not fit, or the cutoff is negative or not finite.
        UserError: the format stores blocks, and `hidden` is not a whole number of them.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        weight_format: str,
        hidden: int,
        gated: bool,
        activation: Activation,
        bias: torch.Tensor | None = None,
        first_row: int = 0,
        cutoff: float = 0.0,
    ) -> None:
        if weight_format not in WEIGHT_FORMATS:
            raise ValueError(f"weight format {weight_format!r} is not known; known are {', '.join(WEIGHT_FORMATS)}")
        dtype, parts = DTYPES[weight_format], 3 if gated else 2
        if rows.ndim != 2 or rows.dtype != dtype:
            raise ValueError(
                f"a bank's {weight_format} rows are a matrix of {dtype}, not {rows.dtype} {list(rows.shape)}"
            )
        self.row_bytes = parts * vector_bytes(weight_format, hidden)  # of a row's vectors, without padding
        record = self.row_bytes // dtype.itemsize
        if hidden < 1 or rows.shape[1] < record:
            raise ValueError(f"rows of {rows.shape[1]} elements do not hold {parts} vectors of {hidden} weights")
        if rows.stride(1) != 1 or (len(rows) > 1 and rows.stride(0) < record):
            raise ValueError(f"a bank's rows lie one after the other, not with strides {rows.stride()}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not known; known are {', '.join(ACTIVATIONS)}")
        if activation == "drelu" and not gated:
            raise ValueError("drelu is for rows with a gate")
        if bias is not None:
            if gated:
                raise ValueError("a bias is for rows without a gate")
            if bias.shape != (len(rows),) or bias.dtype != torch.float32 or not bias.is_contiguous():
                raise ValueError(f"a bank's bias is contiguous float32 of shape [{len(rows)}]")
            if bias.device != rows.device:
                raise ValueError(f"the bias is on {bias.device}, the rows on {rows.device}")
        if first_row < 0:
            raise ValueError(f"a bank cannot begin at row {first_row}")
        self.weight_format = weight_format
        self.hidden = hidden
        self.gated = gated
        self.activation = activation
        self.first_row = first_row
        self.cutoff = cutoff
        self.buckets: Buckets | None = None
        self.device = rows.device
        self.stride_bytes = (rows.stride(0) if len(rows) > 1 else rows.shape[1]) * rows.element_size()
        self.bytes = len(rows) * (self.stride_bytes + (0 if bias is None else bias.element_size()))
        self._len = len(rows)
        self._memory: tuple[torch.Tensor, torch.Tensor | None] | None = (rows, bias)
        on_cpu = rows.device.type == "cpu"
        self._addresses = (rows.data_ptr(), 0 if bias is None else bias.data_ptr()) if on_cpu else None

    def __len__(self) -> int:
        return self._len

    @property
    def cutoff(self) -> float:
        """An activation of at most this magnitude counts as exactly zero; NaN does not. A number that fp32 holds.

        Operators read it when they are called or recorded: a recorded program keeps the one it was recorded with.
        """
        return self._cutoff

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        single = float(torch.tensor(value, dtype=torch.float32))  # what every backend compares with
        if not (math.isfinite(single) and single >= 0):
            raise ValueError(f"an activation's cutoff is a finite number of at least 0, not {value!r}")
        self._cutoff = single

    @property
    def memory(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows and the bias. Whoever holds them keeps the memory alive, also past `close`.

        Raises:
            RuntimeError: the bank is closed.
        """
        if self._memory is None:
            raise RuntimeError("this bank of rows was closed; its memory is gone")
        return self._memory

    @property
    def addresses(self) -> tuple[int, int]:
        """Addresses of the rows and of the bias (0 without one), in host memory; valid while `memory` is held.

        Raises:
            RuntimeError: the bank is closed, or not in host memory.
        """
        rows, _ = self.memory
        if self._addresses is None:
            raise RuntimeError(f"a bank on {rows.device} has no address in host memory")
        return self._addresses

    def close(self) -> None:
        """Drop the memory. Closing twice does nothing."""
        self._memory = None
