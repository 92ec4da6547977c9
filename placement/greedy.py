"""Placements without a solver: the hottest groups first, and steps that each save the most for a byte."""

from __future__ import annotations

import heapq
import math

import numpy as np

from placement.problem import CPU, GPU, Choice, Numbers, PlacementProblem

MOST_STEPS = 20_000


def top_k(problem: PlacementProblem, hotness: Numbers, dense: Choice) -> Choice:
    """The hottest groups on the GPU as long as they fit, then in RAM, beside the dense parts of another choice.

    hotness: `[layers, groups]`, per row. This is what caching by frequency does; it knows no balance and no delay. A
    layer's first step takes as many groups as it must have.
    """
    empty = Choice((0,) * problem.n_layers, (0,) * problem.n_layers, dense.attention, dense.embeddings, dense.head)
    vram, ram = problem.taken(empty)
    open_layers = [layer for layer, least in enumerate(problem.least) if least is not None]
    first = {layer: problem.first_cut(layer) for layer in open_layers}
    cuts = _hottest(problem, hotness, dict.fromkeys(open_layers, 0), first, (problem.vram - vram) // problem.row_bytes)
    if problem.flash is None:
        kept = (problem.n_groups,) * problem.n_layers
    else:
        room = math.inf if problem.ram is None else (problem.ram - ram) // problem.row_bytes
        starts = {layer: cuts.get(layer, 0) for layer in range(problem.n_layers)}
        held = _hottest(problem, hotness, starts, {layer: at + 1 for layer, at in starts.items()}, room)
        kept = tuple(held[layer] for layer in range(problem.n_layers))
    ordered = tuple(cuts.get(layer, 0) for layer in range(problem.n_layers))
    return Choice(ordered, kept, dense.attention, dense.embeddings, dense.head)


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


def improve(problem: PlacementProblem, choice: Choice) -> Choice:
    """The choice after steps that each change one part and save the most for a byte, until none saves anything.

    A step gives one layer another unit, cut or number of groups in RAM, or moves embeddings, head, or both; the budgets
    that the choice keeps stay kept.
    """
    cost = problem.cost(choice)
    for _ in range(MOST_STEPS):
        step = _best_step(problem, choice)
        if step is None:
            break
        changed = problem.cost(step)
        if not changed < cost:
            break
        choice, cost = step, changed
    return choice


def _best_step(problem: PlacementProblem, choice: Choice) -> Choice | None:
    """The change of one part that saves the most for a byte that it takes; any that saves and frees memory is first."""
    vram, ram = problem.taken(choice)
    room_gpu = problem.vram - vram
    room_ram = math.inf if problem.ram is None else problem.ram - ram
    layers, now = problem.layer_costs, np.arange(problem.n_layers)
    units, cuts = np.array(choice.attention), np.array(choice.cuts)
    kept_at = np.array(choice.kept) if problem.flash is not None else np.zeros(problem.n_layers, int)
    places = np.array((choice.embeddings, *choice.attention, choice.head))
    half = problem.hand_over / 2
    neighbours = np.stack([(places[:-2] != u).astype(float) + (places[2:] != u) for u in (CPU, GPU)], axis=1) * half
    costs = layers + neighbours[:, :, None, None]
    saved = costs[now, units, cuts, kept_at][:, None, None, None] - costs
    rows = problem.ends_of_groups * problem.row_bytes
    kept_rows = rows if problem.flash is not None else rows[-1:]
    dense = problem.attention.bytes[:, None] * np.array([0, 1])
    gpu = dense[:, :, None, None] + rows[None, None, :, None]
    gpu_more = gpu - (dense[now, units] + rows[cuts])[:, None, None, None]
    held = problem.attention.bytes[:, None, None, None] + kept_rows[None, None, None, :] - gpu
    ram_more = (
        held - (problem.attention.bytes - dense[now, units] + kept_rows[kept_at] - rows[cuts])[:, None, None, None]
    )
    tiny = 1e-12 * max(abs(problem.cost(choice)), 1e-300)
    allowed = (gpu_more <= room_gpu) & (ram_more <= room_ram) & (saved > tiny)
    found: list[tuple[float, Choice]] = []
    if allowed.any():
        weight = np.maximum(gpu_more, 0) + np.maximum(ram_more if problem.ram is not None else 0, 0)
        worth = np.where(allowed, saved / np.maximum(weight, 1), -np.inf)
        at = np.unravel_index(int(worth.argmax()), worth.shape)
        found.append((float(worth[at]), _with_layer(problem, choice, *(int(i) for i in at))))
    for embeddings, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        moved = Choice(choice.cuts, choice.kept, choice.attention, embeddings, head)
        gain = problem.cost(choice) - problem.cost(moved)
        if gain > tiny and problem.fits(moved):
            more = max(problem.taken(moved)[0] - vram, 1)
            found.append((gain / more, moved))
    return max(found, key=lambda step: step[0])[1] if found else None


def _with_layer(problem: PlacementProblem, choice: Choice, layer: int, unit: int, cut: int, kept: int) -> Choice:
    def put(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:layer], value, *values[layer + 1 :])

    kept = kept if problem.flash is not None else problem.n_groups
    return Choice(
        put(choice.cuts, cut),
        put(choice.kept, kept),
        put(choice.attention, unit),
        choice.embeddings,
        choice.head,
    )
