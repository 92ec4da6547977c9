"""The split of the neurons as a problem of whole numbers: groups of rows, a prefix of them on the GPU in each layer.

Every row of a model takes the same bytes, so capacities are counted in rows and no rounding can exceed a budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.cost import ModelSizes
from profiler.hardware import Hardware

GROUP_ROWS = 64
Cuts = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SplitProblem:
    """Choose for each layer how many of its groups, from the first on, live on the GPU.

    values: impact of each group, `[layers, groups]`; group_rows: rows of each group, `[groups]`, whole numbers above 0.
    capacity: rows that fit on the GPU; required: rows that must be there, as RAM has no place for them.
    least: per layer the fewest rows that repay a synchronisation (C_l), 0 where any do; None: no row may go (y_l = 0).
    """

    values: npt.NDArray[np.float64]
    group_rows: npt.NDArray[np.int64]
    capacity: int
    required: int
    least: tuple[int | None, ...]

    def __post_init__(self) -> None:
        layers, groups = self.values.shape
        assert layers > 0 and self.group_rows.shape == (groups,) and len(self.least) == layers
        assert groups > 0 and self.group_rows.min() > 0 and self.values.min() >= 0
        assert all(least is None or least <= self.layer_rows for least in self.least)

    @property
    def layer_rows(self) -> int:
        """Rows of one layer."""
        return int(self.group_rows.sum())

    @property
    def unit_rows(self) -> int:
        """The largest number of rows that divides every group's: a total is always a multiple of it."""
        return int(np.gcd.reduce(self.group_rows))

    def rows_of(self, cut: int) -> int:
        """Rows of a layer's first `cut` groups."""
        return int(self.group_rows[:cut].sum())

    def first_cut(self, layer: int) -> int:
        """The smallest cut above 0 that the layer may have; it holds at least `least` rows.

        The layer may use the GPU: its `least` is not None.
        """
        least = self.least[layer]
        assert least is not None
        return int(np.searchsorted(np.cumsum(self.group_rows), least)) + 1

    def value(self, cuts: Cuts) -> float:
        """Impact of a split."""
        return math.fsum(value for layer, cut in enumerate(cuts) for value in self.values[layer, :cut])

    def rows(self, cuts: Cuts) -> int:
        """Rows of a split on the GPU."""
        return sum(self.rows_of(cut) for cut in cuts)

    def allows(self, cuts: Cuts) -> bool:
        """Whether a split keeps every constraint."""
        if len(cuts) != len(self.least) or not self.required <= self.rows(cuts) <= self.capacity:
            return False
        groups = len(self.group_rows)
        return all(
            cut == 0 or (least is not None and self.first_cut(layer) <= cut <= groups)
            for layer, (cut, least) in enumerate(zip(cuts, self.least, strict=True))
        )


def least_rows(sizes: ModelSizes, hardware: Hardware) -> int | None:
    """C_l of PowerInfer (§6.3.1): the fewest rows of a layer whose time saved on the GPU repays a synchronisation.

    C_l · T^GPU + T_sync ≤ C_l · T^CPU with T^j = bytes of a row / bandwidth_j; None where no number of rows does.
    """
    saved = sizes.whole_row_bytes / hardware.cpu.bandwidth - sizes.whole_row_bytes / hardware.gpu.bandwidth
    if saved <= 0 or hardware.sync / saved > sizes.n_rows:
        return None
    return math.ceil(hardware.sync / saved)


def group_by(
    frequency: npt.NDArray[np.float64], rows: int = GROUP_ROWS
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Impact `[layers, groups]` and rows `[groups]` of groups of `rows` rows in row order; the last may be short."""
    starts = np.arange(0, frequency.shape[1], rows)
    sizes = np.diff(np.append(starts, frequency.shape[1])).astype(np.int64)
    return np.add.reduceat(frequency, starts, axis=1), sizes
