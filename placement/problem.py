"""Placement as a problem of whole numbers: where each layer's hottest groups of rows end, and where dense parts live.

Both objectives are costs to be minimised: seconds of a step, or the impact that is not on the GPU. Everything that a
solver, greedy, the relaxation and brute force need is a table of costs per layer and a few bytes.
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
    unit's work grows by (`Hardware.joined_seconds`). A layer costs the end of both units' work where `overlapped`, else
    the sum of its groups; and hand_over if any group is elsewhere than the attention, half of it where consecutive
    dense parts are. least: per layer the fewest rows that may be on the GPU if any are (C_l of PowerInfer, §6.3.1),
    None where none may.
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
    overlapped: bool
    hand_over: float
    least: tuple[int | None, ...]
    attention: DenseParts
    ends: DenseParts
    tied: bool
    vram: int
    ram: int | None

    def __post_init__(self) -> None:
        assert self.gpu.shape == self.cpu.shape == (len(self.least), len(self.groups))
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
    def layer_costs(self) -> Numbers:
        """Cost `[layers, 2, groups + 1, kept]` of a layer by unit of its attention, cut, and groups kept in memory.

        Infinite where a choice is not allowed. `kept` has `groups + 1` places, or one where nothing is on flash. What
        attention costs is included, changes of unit between layers are not.
        """
        count = self.n_groups
        before = np.zeros((self.n_layers, 1))
        on_gpu = np.concatenate((before, np.cumsum(self.gpu, axis=1)), axis=1)
        on_gpu[:, 1:] += self.gpu_start
        on_cpu = np.concatenate((np.cumsum(self.cpu[:, ::-1], axis=1)[:, ::-1], before), axis=1)
        on_cpu[:, :-1] += self.cpu_start
        gpu, cpu = on_gpu[:, :, None], on_cpu[:, :, None]
        if self.flash is not None:
            more = np.concatenate((np.cumsum(self.flash[:, ::-1], axis=1)[:, ::-1], before), axis=1)
            cpu = cpu + more[:, None, :]
        both = cpu + gpu * self.gpu_share, gpu + cpu * self.cpu_share
        rows = np.maximum(*both) if self.overlapped else gpu + cpu
        if self.flash is not None:
            cut, kept = np.ogrid[: count + 1, : count + 1]
            rows[:, kept < cut] = np.inf
        for layer, least in enumerate(self.least):
            rows[layer, 1 : self.first_cut(layer)] = np.inf
            if least is None:
                rows[layer, 1:] = np.inf
        costs = np.stack((rows, rows), axis=1)
        costs[:, CPU, 1:] += self.hand_over  # groups on the GPU, attention on the CPU
        costs[:, GPU, :-1] += self.hand_over
        return np.asarray(costs + self.attention.costs[:, :, None, None])

    @cached_property
    def dearest(self) -> float:
        """A cost that no allowed choice exceeds, above 0."""
        layers, ends = (np.where(np.isfinite(x), x, 0.0) for x in (self.layer_costs, self.ends.costs))
        total = layers.max(axis=(1, 2, 3)).sum() + ends.max(axis=1).sum() + self.hand_over * self.n_layers
        return float(total) or 1.0

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
        layers = self.layer_costs
        kept = choice.kept if self.flash is not None else (0,) * self.n_layers
        if self.flash is None and any(k != self.n_groups for k in choice.kept):
            return math.inf
        if self.tied and choice.embeddings != choice.head:
            return math.inf
        costs = [
            float(layers[layer, unit, cut, last])
            for layer, (unit, cut, last) in enumerate(zip(choice.attention, choice.cuts, kept, strict=True))
        ]
        places = (choice.embeddings, *choice.attention, choice.head)
        changes = sum(before != after for before, after in pairwise(places))
        ends = float(self.ends.costs[0, choice.embeddings] + self.ends.costs[1, choice.head])
        return math.fsum(costs) + ends + self.hand_over / 2 * changes

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
