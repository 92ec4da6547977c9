"""Greedy splits: optimal where no layer has a least number of rows and all groups are whole; else a good start."""

from __future__ import annotations

import heapq

import numpy as np

from placement.problem import Cuts, SplitProblem


def greedy(problem: SplitProblem) -> Cuts:
    """A split by falling impact per row. It keeps the capacity; `problem.allows` says whether it keeps the rest."""
    return fill(problem, (0,) * len(problem.least))


def fill(problem: SplitProblem, cuts: Cuts) -> Cuts:
    """The split with the room that it leaves filled by falling impact per row, groups without impact included.

    A layer's next step is its next group, or, from nothing, all groups up to its least number of rows.
    """
    ends = np.concatenate(([0], np.cumsum(problem.group_rows)))
    impact = np.concatenate((np.zeros((len(cuts), 1)), np.cumsum(problem.values, axis=1)), axis=1)
    result = list(cuts)
    room = problem.capacity - problem.rows(cuts)
    steps: list[tuple[float, int, int]] = []

    def offer(layer: int) -> None:
        start = result[layer]
        if problem.least[layer] is None or start == len(problem.group_rows):
            return
        stop = start + 1 if start else problem.first_cut(layer)
        gain = (impact[layer, stop] - impact[layer, start]) / (ends[stop] - ends[start])
        heapq.heappush(steps, (-float(gain), layer, stop))

    for layer in range(len(cuts)):
        offer(layer)
    while steps:
        _, layer, stop = heapq.heappop(steps)
        rows = int(ends[stop] - ends[result[layer]])
        if rows <= room:
            room -= rows
            result[layer] = stop
            offer(layer)
    return tuple(result)


def relaxed_value(problem: SplitProblem) -> float:
    """An impact that no split exceeds: groups taken by falling impact per row, the last in part, order ignored."""
    open_layers = [layer for layer, least in enumerate(problem.least) if least is not None]
    values = problem.values[open_layers].ravel()
    rows = np.tile(problem.group_rows, len(open_layers))
    hottest = np.argsort(-values / rows, kind="stable")
    before = np.cumsum(rows[hottest]) - rows[hottest]
    capacity = problem.capacity // problem.unit_rows * problem.unit_rows
    share = np.clip((capacity - before) / rows[hottest], 0, 1)
    return float(values[hottest] @ share)
