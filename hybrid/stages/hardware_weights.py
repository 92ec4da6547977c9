"""Random weights that no cache holds, and the engine's operators over them: what `hybrid hardware` times."""

from __future__ import annotations

import itertools
import math
import mmap
from dataclasses import dataclass

import torch

from hybrid.ops.bank import RowBank
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.runtime.unit import Unit
from profiler.formats import BLOCK, vector_bytes
from profiler.matrix import Matrix
from profiler.speeds import Access
from profiler.timing import Call

VECTORS = 3  # of a row: gate, up, down
TILE_ROWS = 256  # that differ; the rest repeat them, which no cache can tell
NAMED_SHARE = 10  # one row of so many is named


@dataclass(frozen=True)
class Shape:
    """What is multiplied: by default projections of 4096 × 4096, and rows of a layer of a 7B model.

    neurons: rows of one layer, as wide as its bitmap is. least: bytes that weights of one format take on a unit.
    """

    least: int
    hidden: int = 4096
    outputs: int = 4096
    neurons: int = 11008

    def __post_init__(self) -> None:
        assert self.neurons >= NAMED_SHARE and min(self.least, self.outputs) > 0, "sizes of something"
        assert self.hidden % BLOCK == 0, "whole blocks"

    def rows(self, weight_format: str) -> int:
        """Rows of as many layers as take `least` bytes, or hold two projections."""
        row_bytes = VECTORS * vector_bytes(weight_format, self.hidden)
        layers = math.ceil(max(self.least, 2 * self.outputs * row_bytes / VECTORS) / row_bytes / self.neurons)
        return layers * self.neurons


def random_rows(weight_format: str, shape: Shape) -> torch.Tensor:
    """`[rows, VECTORS vectors of hidden weights]` of a format, in memory like a mapped file's.

    That is what the host's weights lie in: pages of the usual size, whatever the system does with other memory.
    """
    values = torch.randn(TILE_ROWS * VECTORS, shape.hidden, generator=torch.Generator().manual_seed(0))
    tile = Matrix.quantised(values / shape.hidden**0.5, weight_format).data.view(TILE_ROWS, -1)
    count = shape.rows(weight_format)
    room = mmap.mmap(-1, count * tile.shape[1] * tile.element_size())
    rows = torch.frombuffer(room, dtype=tile.dtype).view(count, tile.shape[1])
    for first in range(0, count, TILE_ROWS):
        rows[first : first + TILE_ROWS] = tile[: count - first]
    return rows


class Operators:
    """A unit's operators over the weights of one format, each call over others than the call before.

    Calls are short, a millisecond or two on one core: few of them are interrupted where other processes want the core.

    moved: by access, bytes of weights that one call reads; for None, its floating-point operations: as many tokens
    through a projection as prompts bring, which on a unit of threads is as many as a native operator takes.
    """

    def __init__(self, unit: Unit, rows: torch.Tensor, weight_format: str, shape: Shape) -> None:
        self.unit = unit
        placed = unit.place(rows, weight_format)
        # The vectors of the rows, one after the other, are those of a matrix.
        self._vectors = Matrix(placed.view(VECTORS * len(placed), -1), weight_format, shape.hidden)
        tokens = PREFILL_TOKENS if unit.pool is None else MAX_TOKENS
        self._x = torch.randn(tokens, shape.hidden, generator=torch.Generator().manual_seed(1)).to(unit.device)
        self._named = shape.neurons // NAMED_SHARE
        self.matrices, smaller = self.pieces(shape.outputs), self.pieces(max(1, shape.outputs // 4))
        self._next_matrix, self._smaller = itertools.cycle(self.matrices), itertools.cycle(smaller)
        self.banks, parts = (
            [_bank(placed[at : at + rows], weight_format, shape) for at in _starts(placed, rows)]
            for rows in (shape.neurons, self._named)
        )
        self.masks = disjoint_masks(shape.neurons, self._named).to(unit.device)
        self._parts = itertools.cycle(parts)
        self._scattered = itertools.cycle(itertools.product(self.masks, self.banks))
        self.row_bytes = VECTORS * vector_bytes(weight_format, shape.hidden)
        self.moved: dict[Access | None, int] = {
            "dense": self.matrices[0].nbytes,
            "rows": self._named * self.row_bytes,
            "passed": self._named * self.row_bytes,
            None: 2 * tokens * smaller[0].rows * shape.hidden,
        }

    def call(self, access: Access | None) -> Call:
        """What does one call's work, which is complete when it returns."""
        if access is None:
            return self._many
        return {"dense": self._dense, "rows": self._rows, "passed": self._passed}[access]

    def pieces(self, rows: int) -> list[Matrix]:
        """All weights as matrices of so many rows."""
        data, of = self._vectors.data, self._vectors
        return [Matrix(data[at : at + rows], of.weight_format, of.columns) for at in _starts(data, rows)]

    def _dense(self) -> None:
        self.unit.linear(self._x[:1], next(self._next_matrix), None)
        complete(self.unit)

    def _rows(self) -> None:
        mask, bank = next(self._scattered)
        _, counts = self.unit.sparse_ffn(bank, self._x[:1], mask, True)
        assert counts.finished == self._named, "silu is not zero for these weights"
        complete(self.unit)

    def _passed(self) -> None:
        self.unit.sparse_ffn(next(self._parts), self._x[:1], None, False)
        complete(self.unit)

    def _many(self) -> None:
        self.unit.linear(self._x, next(self._smaller), None)
        complete(self.unit)


def disjoint_masks(rows: int, named: int) -> torch.Tensor:
    """bool `[masks, 1, rows]`: rows here and there, `named` in each mask, none in two, hardly any in none."""
    count = rows // named
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(2))[: count * named].view(count, named)
    masks = torch.zeros(count, 1, rows, dtype=torch.bool)
    masks[torch.arange(count)[:, None], 0, order] = True
    return masks


def _bank(rows: torch.Tensor, weight_format: str, shape: Shape) -> RowBank:
    """silu is zero nowhere, so that all rows that are named are finished."""
    return RowBank(rows, weight_format, shape.hidden, True, "silu")


def _starts(data: torch.Tensor, rows: int) -> range:
    return range(0, len(data) - rows + 1, rows)


def complete(unit: Unit) -> None:
    """Wait until a unit has done all that it was given."""
    if unit.device.type == "cuda":
        torch.cuda.synchronize(unit.device)
