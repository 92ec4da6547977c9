"""Placement as a problem of whole numbers: where each layer's hottest groups of rows end, and where dense parts live.

Both objectives are costs to be minimised: seconds of a step, or the impact that is not on the GPU. Everything that a
solver, greedy, the relaxation and brute force need is what each unit's work costs per layer, and a few bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.plan import Objective

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
CPU, GPU = 0, 1  # places in tables


@dataclass(frozen=True)
class Choice:
    """One placement. cuts: groups of each layer on the GPU; kept: groups on the GPU or in RAM, the others on flash.

    attention: of each layer, with its KV pages and predictor; embeddings; head: 1 where it is on the GPU.
    """

    cuts: tuple[int, ...]
    kept: tuple[int, ...]
    attention: tuple[int, ...]
    embeddings: int
    head: int


@dataclass(frozen=True, eq=False)
class DenseParts:
    """Parts that every token needs whole. Bytes `[parts]`, and `[parts, 2]` costs on the CPU and on the GPU."""

    bytes: npt.NDArray[np.int64]
    costs: Numbers

    def __post_init__(self) -> None:
        assert self.costs.shape == (*self.bytes.shape, 2) and self.bytes.min() >= 0

    def fixed(self, units: tuple[int, ...]) -> DenseParts:
        """The same parts, each allowed on one unit only."""
        allowed = np.arange(2) == np.array(units)[:, None]
        return DenseParts(self.bytes, np.where(allowed, self.costs, np.inf))


@dataclass(frozen=True, eq=False)
class PlacementProblem:
    """Choose what lives where at the least cost.

    groups: rows of each group, `[groups]`, the last perhaps fewer; the same in every layer. row_bytes: of one row.
    gpu, cpu: cost of a group on each unit, `[layers, groups]`; flash: what it costs more there, None where no row may
    be left on flash. gpu_start, cpu_start: cost of having any group on that unit. gpu_share, cpu_share: what the other
    unit's work grows by, 0 to 1; a layer costs the end of both units' work (`Hardware.joined_seconds`), which is the
    sum of both where the shares are 1; and hand_over if any group is elsewhere than the attention, half of it where
    consecutive dense parts are. least: per layer the fewest rows that may be on the GPU if any are (C_l of PowerInfer,
    §6.3.1), None where none may.
    attention: dense parts of the layers; ends: embeddings and head, which `tied` are one. vram, ram: bytes left for all
    these, ram None for no limit.
    """

    objective: Objective
    groups: npt.NDArray[np.int64]
    row_bytes: int
    gpu: Numbers
    cpu: Numbers
    flash: Numbers | None
    gpu_start: float
    cpu_start: float
    gpu_share: float
    cpu_share: float
    hand_over: float
    least: tuple[int | None, ...]
    attention: DenseParts
    ends: DenseParts
    tied: bool
    vram: int
    ram: int | None

    def __post_init__(self) -> None:
        assert self.gpu.shape == self.cpu.shape == (len(self.least), len(self.groups))
        assert min(self.gpu.min(), self.cpu.min(), self.gpu_start, self.cpu_start, self.hand_over) >= 0
        assert self.flash is None or (self.flash.shape == self.gpu.shape and self.flash.min() >= 0)
        assert len(self.groups) > 0 and self.groups.min() > 0 and self.row_bytes > 0
        assert len(self.attention.bytes) == len(self.least) and len(self.ends.bytes) == 2
        assert self.vram >= 0 and (self.ram is None or self.ram >= 0)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.least)

    @property
    def n_groups(self) -> int:
        """Groups of each layer."""
        return len(self.groups)

    @cached_property
    def ends_of_groups(self) -> npt.NDArray[np.int64]:
        """Rows `[groups + 1]` of the first so many groups."""
        return np.concatenate(([0], np.cumsum(self.groups)))

    @cached_property
    def gpu_work(self) -> Numbers:
        """Cost `[layers, groups + 1]` of the GPU's work for the first so many groups of a layer, its start included."""
        work = _summed(self.gpu)
        work[:, 1:] += self.gpu_start
        return work

    @cached_property
    def cpu_work(self) -> Numbers:
        """Cost `[layers, groups + 1]` of the CPU's work for all but the first so many groups, flash aside."""
        work = _summed(self.cpu[:, ::-1])[:, ::-1]
        work[:, :-1] += self.cpu_start
        return work

    @cached_property
    def flash_work(self) -> Numbers:
        """What all but the first so many groups cost more on flash, `[layers, groups + 1]`; nothing without flash."""
        if self.flash is None:
            return np.zeros((self.n_layers, self.n_groups + 1))
        return _summed(self.flash[:, ::-1])[:, ::-1]

    @cached_property
    def closed(self) -> npt.NDArray[np.bool_]:
        """Which cuts `[layers, groups + 1]` hold too few rows, or any where there may be none."""
        closed = np.zeros((self.n_layers, self.n_groups + 1), dtype=bool)
        for layer, least in enumerate(self.least):
            closed[layer, 1 : None if least is None else self.first_cut(layer)] = True
        return closed

    @cached_property
    def cpu_ends_last(self) -> tuple[Places, Places]:
        """Up to which groups kept, `[layers, groups + 1]` by cut, a layer ends with the CPU rather than with the GPU.

        -1 where it never does. It falls with the cut; and the last cut `[layers]` that is itself no more than that.
        """
        cuts = np.arange(self.n_groups + 1)
        if max(self.gpu_share, self.cpu_share) >= 1:
            last = np.full((self.n_layers, len(cuts)), self.n_groups)
        else:
            least = self.gpu_work * ((1 - self.gpu_share) / (1 - self.cpu_share)) - self.cpu_work
            found = [np.searchsorted(-f, -h, side="right") for f, h in zip(self.flash_work, least, strict=True)]
            last = np.stack(found) - 1
        return last, (cuts <= last).sum(axis=1) - 1

    def joined(self, gpu: Numbers, cpu: Numbers) -> Numbers:
        """When both units are done with work that alone costs them so much."""
        return np.maximum(cpu + self.gpu_share * gpu, gpu + self.cpu_share * cpu)

    def layer_costs(self, layers: Places, units: Places, cuts: Places, kept: Places) -> Numbers:
        """Costs of layers by unit of the attention, cut, and groups kept in memory, arrays that broadcast.

        Infinite where a choice is not allowed. What attention costs is included, changes of unit between layers not.
        """
        cpu = self.cpu_work[layers, cuts] + self.flash_work[layers, kept]
        away = np.where(units == GPU, cuts < self.n_groups, cuts > 0)
        costs = self.joined(self.gpu_work[layers, cuts], cpu) + self.hand_over * away
        refused = self.closed[layers, cuts] | (kept < cuts)
        if self.flash is None:
            refused = refused | (kept != self.n_groups)
        return np.where(refused, np.inf, costs + self.attention.costs[layers, units])

    @cached_property
    def dearest(self) -> float:
        """A cost that no allowed choice exceeds, above 0."""
        work = sum(
            float(side[:, at].sum()) for side, at in ((self.gpu_work, -1), (self.cpu_work, 0), (self.flash_work, 0))
        )
        parts = (np.where(np.isfinite(x.costs), x.costs, 0.0).max(axis=1).sum() for x in (self.attention, self.ends))
        changes = self.hand_over * (1.5 * self.n_layers + 0.5)
        return float(work + sum(parts) + changes) or 1.0

    def with_ends(self, embeddings: int, head: int) -> PlacementProblem:
        """The same problem with embeddings and head on given units."""
        return replace(self, ends=self.ends.fixed((embeddings, head)))

    def with_dense(self, choice: Choice) -> PlacementProblem:
        """The same problem with all dense parts where a choice has them."""
        attention = self.attention.fixed(choice.attention)
        return replace(self.with_ends(choice.embeddings, choice.head), attention=attention)

    def first_cut(self, layer: int) -> int:
        """The smallest cut above 0 that holds the layer's least rows; all groups where no row may go."""
        least = self.least[layer]
        if least is None:
            return self.n_groups
        return int(np.searchsorted(self.ends_of_groups[1:], least)) + 1

    def cost(self, choice: Choice) -> float:
        """What a choice costs: infinite where it is not allowed, whatever it takes."""
        if self.tied and choice.embeddings != choice.head:
            return math.inf
        units, cuts, kept = (np.array(x) for x in (choice.attention, choice.cuts, choice.kept))
        costs = self.layer_costs(np.arange(self.n_layers), units, cuts, kept)
        places = (choice.embeddings, *choice.attention, choice.head)
        changes = sum(before != after for before, after in pairwise(places))
        ends = float(self.ends.costs[0, choice.embeddings] + self.ends.costs[1, choice.head])
        return math.fsum(costs.tolist()) + ends + self.hand_over / 2 * changes

    def taken(self, choice: Choice) -> tuple[int, int]:
        """Bytes of GPU memory and of RAM, exactly, work buffers aside."""
        rows = self.ends_of_groups
        on_gpu = sum(int(rows[cut]) for cut in choice.cuts)
        in_memory = sum(int(rows[last]) for last in choice.kept)
        units = np.array(choice.attention)
        dense = [int(self.attention.bytes[units == unit].sum()) for unit in (CPU, GPU)]
        for part, unit in enumerate((choice.embeddings, choice.head)):
            dense[unit] += int(self.ends.bytes[part])
        return on_gpu * self.row_bytes + dense[GPU], (in_memory - on_gpu) * self.row_bytes + dense[CPU]

    def fits(self, choice: Choice) -> bool:
        """Whether a choice keeps both budgets."""
        vram, ram = self.taken(choice)
        return vram <= self.vram and (self.ram is None or ram <= self.ram)

    def allows(self, choice: Choice) -> bool:
        """Whether a choice keeps every constraint."""
        return self.fits(choice) and math.isfinite(self.cost(choice))


def _summed(costs: Numbers) -> Numbers:
    """Sums `[layers, groups + 1]` of the first so many groups."""
    return np.concatenate((np.zeros((len(costs), 1)), np.cumsum(costs, axis=1)), axis=1)
