"""Random weights that no cache holds, and the engine's operators over them: what `hybrid hardware` times."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass

import torch

from hybrid.ops.bank import RowBank
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.unit import Unit
from profiler.artifacts import UserError
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
        if min(self.least, self.hidden, self.outputs, self.neurons) < 1 or self.hidden % BLOCK:
            raise UserError(f"operators are measured with positive sizes and a multiple of {BLOCK} as width")

    def rows(self, weight_format: str) -> int:
        """Rows that take `least` bytes, or a little more: shares of them are whole, and hold two projections."""
        row_bytes = VECTORS * vector_bytes(weight_format, self.hidden)
        needed = max(self.least, 2 * self.outputs * row_bytes // VECTORS)
        return -(-needed // row_bytes // NAMED_SHARE) * NAMED_SHARE

    def nbytes(self, weight_format: str) -> int:
        """Bytes that all rows take."""
        return self.rows(weight_format) * VECTORS * vector_bytes(weight_format, self.hidden)


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

    Calls are short, about a millisecond on one core: few of them are interrupted where other processes want the core.

    moved: by access, bytes of weights that one call reads; for None, which is as many tokens as a native operator takes
    through a projection, its floating-point operations.
    """

    def __init__(self, unit: Unit, rows: torch.Tensor, weight_format: str, shape: Shape) -> None:
        self.unit = unit
        placed = unit.place(rows, weight_format)
        # silu is zero nowhere, so that all rows that are named are finished
        self._bank = RowBank(placed, weight_format, shape.hidden, True, "silu")
        # The vectors of the rows, one after the other, are those of a matrix.
        self._vectors = Matrix(placed.view(VECTORS * len(placed), -1), weight_format, shape.hidden)
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(len(rows), generator=generator).view(NAMED_SHARE, -1)
        masks = torch.zeros(NAMED_SHARE, 1, len(rows), dtype=torch.bool)
        masks[torch.arange(NAMED_SHARE)[:, None], 0, order] = True
        self._x = torch.randn(MAX_TOKENS, shape.hidden, generator=generator).to(unit.device)
        self._named = order.shape[1]
        matrices, smaller = self.pieces(shape.outputs), self.pieces(max(1, shape.outputs // 4))
        self._matrices, self._smaller = itertools.cycle(matrices), itertools.cycle(smaller)
        self._masks = itertools.cycle(masks.to(unit.device))
        self.moved: dict[Access | None, int] = {
            "dense": matrices[0].nbytes,
            "rows": self._named * VECTORS * vector_bytes(weight_format, shape.hidden),
            None: 2 * MAX_TOKENS * smaller[0].rows * shape.hidden,
        }

    def call(self, access: Access | None) -> Call:
        """What does one call's work, which is complete when it returns."""
        return self._many if access is None else self._dense if access == "dense" else self._rows

    def pieces(self, rows: int) -> list[Matrix]:
        """All weights as matrices of so many rows."""
        data = self._vectors.data
        starts = range(0, len(data) - rows + 1, rows)
        return [Matrix(data[at : at + rows], self._vectors.weight_format, self._vectors.columns) for at in starts]

    def _dense(self) -> None:
        self.unit.linear(self._x[:1], next(self._matrices), None)
        complete(self.unit)

    def _rows(self) -> None:
        _, counts = self.unit.sparse_ffn(self._bank, self._x[:1], next(self._masks), True)
        assert counts.finished == self._named, "silu is not zero for these weights"
        complete(self.unit)

    def _many(self) -> None:
        self.unit.linear(self._x, next(self._smaller), None)
        complete(self.unit)


def complete(unit: Unit) -> None:
    """Wait until a unit has done all that it was given."""
    if unit.device.type == "cuda":
        torch.cuda.synchronize(unit.device)
