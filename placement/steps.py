"""Placements made better, or made to fit, by steps that each change one layer and give the most for a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from placement.problem import CPU, GPU, Choice, Numbers, PlacementProblem, Places

MOST_STEPS = 20_000
ALIKE = 1e-6  # of the best: of steps that are as good, the longest is taken
TINY = 1e-12  # of a choice's cost: savings below are rounding
# From room [2] in bytes, seconds saved and more bytes taken [2, ...] of steps to how good they are, -inf for none.
Score = Callable[[Numbers, Numbers, Numbers], Numbers]


def improve(problem: PlacementProblem, choice: Choice) -> Choice:
    """The choice after steps that each save the most for a byte that they take, until none saves anything.

    A step gives one layer another unit, cut or number of groups in RAM, or moves embeddings, head, or both; the budgets
    that the choice keeps stay kept.
    """
    tiny = TINY * max(abs(problem.cost(choice)), 1e-300)

    def worth(room: Numbers, saved: Numbers, more: Numbers) -> Numbers:
        allowed = (more[0] <= room[0]) & (more[1] <= room[1]) & (saved > tiny)
        weight = np.maximum(more[0], 0) + (np.maximum(more[1], 0) if problem.ram is not None else 0)
        return np.where(allowed, saved / np.maximum(weight, 1), -np.inf)

    for _ in range(MOST_STEPS):
        choice = _with_best_ends(problem, choice, tiny)
        better = _Steps(problem, choice, worth).taken()
        if not problem.cost(better) < problem.cost(choice) - tiny:
            break
        choice = better
    return choice


def repair(problem: PlacementProblem, choice: Choice) -> Choice:
    """The choice after steps of layers that each free the most of what is over budget for their cost.

    What it gives may still be over budget, where no step of one layer frees any more.
    """

    def relief(room: Numbers, saved: Numbers, more: Numbers) -> Numbers:
        over = np.maximum(-room, 0).sum()
        freed = over - np.maximum(more[0] - room[0], 0) - np.maximum(more[1] - room[1], 0)
        allowed = (freed > 0) & np.isfinite(saved)
        return np.where(allowed, np.where(allowed, saved, 0) / np.maximum(freed, 1), -np.inf)

    return _Steps(problem, choice, relief).taken()


def blend(problem: PlacementProblem, mixture: Sequence[tuple[Choice, float]]) -> Choice:
    """One choice of what a mixture of choices with the same dense parts is made of, about as large as it is on average.

    Each layer has the rows of one of them: the one that keeps the bytes so far nearest to those of the mixture.
    """
    cuts, kept = (np.array([getattr(choice, name) for choice, _ in mixture]) for name in ("cuts", "kept"))
    shares = np.array([share for _, share in mixture])
    rows = problem.ends_of_groups.astype(np.float64)
    sizes = np.stack((rows[cuts], rows[kept] - rows[cuts]), axis=2)  # [choices, layers, 2]
    behind, chosen = np.zeros(2), []
    for options in np.swapaxes(sizes, 0, 1):
        behind = behind + shares @ options / shares.sum()
        chosen.append(int(np.abs(behind - options).sum(axis=1).argmin()))
        behind = behind - options[chosen[-1]]
    at = np.arange(problem.n_layers)
    dense = mixture[0][0]
    taken, held = (tuple(places[chosen, at].tolist()) for places in (cuts, kept))
    return Choice(taken, held, dense.attention, dense.embeddings, dense.head)


def _with_best_ends(problem: PlacementProblem, choice: Choice, tiny: float) -> Choice:
    """The choice with embeddings and head where they save the most for a byte, as long as that saves anything."""
    while True:
        cost, taken, best, found = problem.cost(choice), problem.taken(choice)[0], 0.0, choice
        for embeddings, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
            moved = Choice(choice.cuts, choice.kept, choice.attention, embeddings, head)
            saved = cost - problem.cost(moved)
            if saved > tiny and problem.fits(moved):
                worth = saved / max(problem.taken(moved)[0] - taken, 1)
                best, found = max((best, found), (worth, moved), key=lambda pair: pair[0])
        if found is choice:
            return choice
        choice = found


class _Steps:
    """A choice that changes layer by layer, and each layer's best step as it was when it was last looked for."""

    def __init__(self, problem: PlacementProblem, choice: Choice, score: Score) -> None:
        self.problem, self.score = problem, score
        self.places = np.array((choice.embeddings, *choice.attention, choice.head))
        self.units = self.places[1:-1]  # a view
        self.cuts, self.kept = np.array(choice.cuts), np.array(choice.kept)
        limits = np.array([problem.vram, math.inf if problem.ram is None else problem.ram])
        self.room = limits - problem.taken(choice)
        self.rows = problem.ends_of_groups * problem.row_bytes
        self.scores = np.full(problem.n_layers, -np.inf)
        self.saved = np.zeros(problem.n_layers)
        self.more = np.zeros((2, problem.n_layers))
        self.steps = np.zeros((problem.n_layers, 3), dtype=np.int64)  # unit, cut, kept

    def taken(self) -> Choice:
        """The choice after the best step of any layer was taken, again and again, until there is none."""
        everywhere = np.arange(self.problem.n_layers)
        self.look(everywhere)
        fresh = True
        for _ in range(MOST_STEPS):
            layer = int(self.scores.argmax())
            if math.isinf(self.scores[layer]):
                if fresh:
                    break
                self.look(everywhere)  # memory that was freed may allow what was not allowed
                fresh = True
            elif math.isinf(self.score(self.room, self.saved[layer], self.more[:, layer])):
                self.look(np.array([layer]))  # memory that was taken may not allow it any more
            else:
                self.take(layer)
                fresh = False
        embeddings, *attention, head = self.places.tolist()
        return Choice(tuple(self.cuts.tolist()), tuple(self.kept.tolist()), tuple(attention), embeddings, head)

    def take(self, layer: int) -> None:
        """Take a layer's step, and look for the next one there."""
        unit, cut, kept = self.steps[layer]
        moved = unit != self.units[layer]
        self.units[layer], self.cuts[layer], self.kept[layer] = unit, cut, kept
        self.room = self.room - self.more[:, layer]
        near = [layer - 1, layer, layer + 1] if moved else [layer]
        self.look(np.array([i for i in near if 0 <= i < self.problem.n_layers]))

    def look(self, layers: Places) -> None:
        """Find the best steps of some layers."""
        problem, at = self.problem, layers[:, None]
        units, cuts, kept = self._steps_of(layers)
        dense = problem.attention.bytes[at]
        before, after = (
            (dense * unit + self.rows[cut], dense * (1 - unit) + self.rows[last] - self.rows[cut])
            for unit, cut, last in ((self.units[at], self.cuts[at], self.kept[at]), (units, cuts, kept))
        )
        more = np.stack([now - then for then, now in zip(before, after, strict=True)])
        saved = self._costs(at, self.units[at], self.cuts[at], self.kept[at]) - self._costs(at, units, cuts, kept)
        scores = self.score(self.room, saved, more)
        most = scores.max(axis=1, keepdims=True)
        alike = scores >= most - ALIKE * np.abs(most)  # true of all where the best is none
        best = np.where(alike, np.abs(more).sum(axis=0), -1).argmax(axis=1)
        rank = np.arange(len(layers))
        self.scores[layers], self.saved[layers] = scores[rank, best], saved[rank, best]
        self.more[:, layers] = more[:, rank, best]
        self.steps[layers] = np.stack([x[rank, best] for x in (units, cuts, kept)], axis=1)

    def _steps_of(self, layers: Places) -> tuple[Places, Places, Places]:
        """Units, cuts and groups kept `[layers, steps]` of what layers may change to.

        Any unit and cut, with fewer groups kept where RAM has no room for all; and where groups may be on flash, any
        number kept beside the same cut, and any cut with as many groups in RAM as now.
        """
        problem, count = self.problem, self.problem.n_groups
        places = np.arange(count + 1)
        units = np.broadcast_to(np.repeat([CPU, GPU], count + 1), (len(layers), 2 * (count + 1)))
        cuts = np.broadcast_to(np.tile(places, 2), units.shape)
        if problem.flash is None:
            return units, cuts, np.full(units.shape, count)
        unit, cut, kept = (x[layers, None] for x in (self.units, self.cuts, self.kept))
        dense = problem.attention.bytes[layers, None]
        room = dense * (units - unit) + self.rows[kept] - self.rows[cut] + max(float(self.room[1]), 0.0)
        most = np.searchsorted(self.rows, self.rows[cuts] + room, side="right") - 1
        same = np.broadcast_to(unit, (len(layers), count + 1))
        all_cuts = np.broadcast_to(places, same.shape)
        return (
            np.hstack((units, same, same)),
            np.hstack((cuts, np.broadcast_to(cut, same.shape), all_cuts)),
            np.hstack((np.maximum(np.minimum(kept, most), cuts), all_cuts, np.minimum(all_cuts + kept - cut, count))),
        )

    def _costs(self, layers: Places, units: Places, cuts: Places, kept: Places) -> Numbers:
        """What layers cost with the changes of unit to their neighbours."""
        changes = (self.places[layers] != units).astype(np.float64) + (self.places[layers + 2] != units)
        costs = self.problem.layer_costs(layers, units, cuts, kept)
        return np.asarray(costs + self.problem.hand_over / 2 * changes)
