"""Placements without steps back: the hottest groups first."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np

from placement.problem import Choice, Numbers, PlacementProblem


def top_k(problem: PlacementProblem, hotness: Numbers, dense: Choice) -> Choice:
    """The hottest groups on the GPU as long as they fit, then in RAM, beside the dense parts of another choice.

    hotness: `[layers, groups]`, per row. This is what caching by frequency does; it knows no balance and no delay. A
    layer's first step takes as many groups as it must have.
    """
    empty = Choice((0,) * problem.n_layers, (0,) * problem.n_layers, dense.attention, dense.embeddings, dense.head)
    vram, _ = problem.taken(empty)
    open_layers = [layer for layer, least in enumerate(problem.least) if least is not None]
    first = {layer: problem.first_cut(layer) for layer in open_layers}
    cuts = _hottest(problem, hotness, dict.fromkeys(open_layers, 0), first, (problem.vram - vram) // problem.row_bytes)
    ordered = tuple(cuts.get(layer, 0) for layer in range(problem.n_layers))
    kept = ordered if problem.flash is not None else (problem.n_groups,) * problem.n_layers
    return keep_more(problem, hotness, replace(empty, cuts=ordered, kept=kept))


def keep_more(problem: PlacementProblem, hotness: Numbers, choice: Choice) -> Choice:
    """The choice with the hottest groups that are on flash in RAM instead, as long as they fit: it costs no more."""
    if problem.flash is None:
        return choice
    room = math.inf if problem.ram is None else (problem.ram - problem.taken(choice)[1]) // problem.row_bytes
    starts = dict(enumerate(choice.kept))
    kept = _hottest(problem, hotness, starts, {layer: at + 1 for layer, at in starts.items()}, room)
    return replace(choice, kept=tuple(kept.values()))


def _hottest(
    problem: PlacementProblem, hotness: Numbers, starts: dict[int, int], first: dict[int, int], room: float
) -> dict[int, int]:
    """How far each layer's prefix of groups reaches when the hottest next step is taken while it fits `room` rows."""
    rows = problem.ends_of_groups
    heat = np.concatenate((np.zeros((problem.n_layers, 1)), np.cumsum(hotness * problem.groups, axis=1)), axis=1)
    result = dict(starts)
    steps: list[tuple[float, int, int]] = []

    def offer(layer: int) -> None:
        at = result[layer]
        if at < problem.n_groups:
            stop = at + 1 if at > starts[layer] else first[layer]
            gain = (heat[layer, stop] - heat[layer, at]) / (rows[stop] - rows[at])
            heapq.heappush(steps, (-float(gain), layer, stop))

    for layer in starts:
        offer(layer)
    while steps:
        _, layer, stop = heapq.heappop(steps)
        size = int(rows[stop] - rows[result[layer]])
        if size <= room:
            room -= size
            result[layer] = stop
            offer(layer)
    return result
