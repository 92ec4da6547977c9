"""A bound that no placement beats, and good placements to start from: both budgets given a price (Lagrange).

With a price for each byte, layers no longer compete for memory: each takes what is cheapest for itself, and changes of
unit between consecutive dense parts are a walk over two states. What the cheapest choice costs, less the budgets at
their price, is a lower bound of every placement that keeps them; the prices that make it greatest are found by cutting
planes (Kelley, 1960). Convexity of a layer's costs is not needed, hand-overs and least rows included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from placement.problem import CPU, GPU, Choice, Numbers, PlacementProblem

MOST_ROUNDS = 200
CLOSE = 1e-9  # of the dearest cost: prices are not improved beyond
UNREACHABLE = 2  # bounds of so many times the dearest cost say that nothing keeps the budgets


@dataclass(frozen=True)
class Relaxed:
    """bound: a cost that no placement within the budgets falls below, infinite where none keeps them. choices: the
    cheapest ones at the prices that were tried, within the budgets or not. prices `[2]`: those that gave the bound.
    """

    bound: float
    choices: tuple[Choice, ...]
    prices: Numbers


def relax(problem: PlacementProblem, attentions: int | None = None) -> Relaxed:
    """The greatest bound that prices for both memories give, with the choices met on the way.

    attentions: bound only placements with so many of them on the GPU.
    """
    limits = np.array([problem.vram, math.inf if problem.ram is None else problem.ram])
    priced = np.flatnonzero(np.isfinite(limits))
    prices, bound, of_bound = np.zeros(2), -math.inf, np.zeros(2)
    cuts: dict[Choice, tuple[float, Numbers]] = {}
    for _ in range(MOST_ROUNDS):
        choice = cheapest(problem, prices, attentions)
        cost, over = problem.cost(choice), (np.array(problem.taken(choice)) - limits)[priced]
        if (value := cost + float(prices[priced] @ over)) > bound:
            bound, of_bound = value, prices
        if choice in cuts or (np.all(over <= 0) and not prices.any()):
            break
        cuts[choice] = (cost, over)
        prices, above = _best_prices(problem, list(cuts.values()), priced)
        if above - bound <= CLOSE * problem.dearest:
            break
    bound = bound if bound <= UNREACHABLE * problem.dearest else math.inf
    return Relaxed(bound, (*cuts, choice), of_bound)


def bounds_by_attentions(problem: PlacementProblem, prices: Numbers) -> Numbers:
    """Bounds `[layers + 1]` of placements with so many attentions on the GPU, all at the same prices of memory."""
    layers, ends, _ = _at_prices(problem, prices)
    least = np.full(problem.n_layers + 1, np.inf)
    for start in (CPU, GPU):
        total, _ = _walk(problem, layers, float(ends[0, start]), start, problem.n_layers)
        for end in (start,) if problem.tied else (CPU, GPU):
            last = total + problem.hand_over / 2 * (np.arange(2) != end)[:, None]
            least = np.minimum(least, last.min(axis=0) + ends[1, end])
    budgets = problem.vram * prices[0] + (0 if problem.ram is None else problem.ram * prices[1])
    return np.asarray(least - budgets)


def _best_prices(
    problem: PlacementProblem, cuts: list[tuple[float, Numbers]], priced: npt.NDArray[np.int64]
) -> tuple[Numbers, float]:
    """Prices of the greatest value that the choices met so far allow, and that value: a small linear program.

    Costs are shares of the dearest and bytes of the largest excess, so that nothing is far from 1. No price is above
    what would pay for everything with the smallest part.
    """
    costs = np.array([cost for cost, _ in cuts]) / problem.dearest
    over = np.array([excess for _, excess in cuts])
    size = max(float(np.abs(over).max()), 1.0)
    parts = np.concatenate(([problem.row_bytes], problem.attention.bytes, problem.ends.bytes))
    highest = 10 * size / float(parts[parts > 0].min())
    found = linprog(
        np.r_[-1.0, np.zeros(len(priced))],
        A_ub=np.hstack([np.ones((len(cuts), 1)), -over / size]),
        b_ub=costs,
        bounds=[(None, None), *[(0, highest)] * len(priced)],
        method="highs",
    )
    assert found.status == 0, found.message
    prices = np.zeros(2)
    prices[priced] = np.maximum(found.x[1:], 0) * problem.dearest / size
    return prices, float(found.x[0]) * problem.dearest


def cheapest(problem: PlacementProblem, prices: Numbers, attentions: int | None) -> Choice:
    """The choice of least cost at `prices [2]` of a byte of GPU memory and of RAM; with so many attentions there."""
    layers, ends, chosen = _at_prices(problem, prices)
    best, places = math.inf, (CPU, (CPU,) * problem.n_layers, CPU)
    for start in (CPU, GPU):
        total, came = _walk(problem, layers, float(ends[0, start]), start, attentions)
        for end in (start,) if problem.tied else (CPU, GPU):
            last = total[:, -1] + problem.hand_over / 2 * (np.arange(2) != end)
            if (cost := float(last.min() + ends[1, end])) < best:
                best, places = cost, (start, _walked(came, int(last.argmin()), attentions), end)
    embeddings, attention, head = places
    width = problem.layer_costs.shape[3]
    at = [int(chosen[layer, unit]) for layer, unit in enumerate(attention)]
    kept = tuple(i % width if problem.flash is not None else problem.n_groups for i in at)
    return Choice(tuple(i // width for i in at), kept, attention, embeddings, head)


def _at_prices(problem: PlacementProblem, prices: Numbers) -> tuple[Numbers, Numbers, npt.NDArray[np.int64]]:
    """Costs `[layers, 2]` of layers and `[2, 2]` of the ends, memory paid for, and the layers' cuts at these costs."""
    of_gpu, of_ram = (float(price) for price in prices)
    rows = problem.ends_of_groups * problem.row_bytes
    cut_price = rows[:, None] * (of_gpu - of_ram)
    kept_price = (rows if problem.flash is not None else rows[-1:])[None, :] * of_ram
    flat = (problem.layer_costs + cut_price + kept_price).reshape(problem.n_layers, 2, -1)
    chosen = flat.argmin(axis=2)
    byte_prices = np.array([of_ram, of_gpu])
    layers = np.take_along_axis(flat, chosen[:, :, None], axis=2)[:, :, 0]
    layers = layers + problem.attention.bytes[:, None] * byte_prices
    return layers, problem.ends.costs + problem.ends.bytes[:, None] * byte_prices, chosen


def _walk(
    problem: PlacementProblem, layers: Numbers, begin: float, start: int, attentions: int | None
) -> tuple[Numbers, list[npt.NDArray[np.int64]]]:
    """Least costs `[2, attentions + 1]` up to the last attention by its unit, and where each layer's states came from.

    A change of unit costs half a hand-over (Viterbi's walk). How many attentions are on the GPU is part of the state;
    None does not count them.
    """
    change = problem.hand_over / 2 * (1 - np.eye(2))
    total = np.full((2, (attentions or 0) + 1), np.inf)
    total[start, 0] = begin
    came = []
    for costs in layers:
        reached = total[:, None, :] + change[:, :, None]  # [from, to, count]
        came.append(reached.argmin(axis=0))
        total = reached.min(axis=0) + costs[:, None]
        if attentions is not None:
            total[GPU] = np.concatenate(([np.inf], total[GPU, :-1]))
    return total, came


def _walked(came: list[npt.NDArray[np.int64]], last: int, attentions: int | None) -> tuple[int, ...]:
    """The units of a walk's layers, from where states `[to, count]` came from, before the layer itself was counted."""
    units, count = [last], attentions or 0
    for step in reversed(came):
        count -= units[-1] if attentions is not None else 0
        units.append(int(step[units[-1], count]))
    return tuple(reversed(units[:-1]))
