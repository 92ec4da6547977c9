"""A bound that no placement beats, and good placements to start from: both budgets given a price (Lagrange).

With a price for each byte, layers no longer compete for memory: each takes what is cheapest for itself, and changes of
unit between consecutive dense parts are a walk over two states. What the cheapest choice costs, less the budgets at
their price, is a lower bound of every placement that keeps them; the prices that make it greatest are those of the
cheapest mixture of the choices met. Convexity of a layer's costs is not needed, hand-overs and least rows included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.prices import Mixture
from placement.problem import CPU, GPU, Choice, Numbers, PlacementProblem
from placement.states import States, attention_states, limits

MOST_ROUNDS = 200
CLOSE = 1e-10  # of the dearest cost: prices are not improved beyond
UNREACHABLE = 2  # bounds of so many times the dearest cost say that nothing keeps the budgets


@dataclass(frozen=True)
class Relaxed:
    """bound: a cost that no placement within the budgets falls below, infinite where none keeps them. choices: the
    cheapest ones at the prices that were tried, within the budgets or not. prices `[2]`: those that gave the bound.
    mixture: choices with shares, which together keep the budgets on average at the bound's cost.
    """

    bound: float
    choices: tuple[Choice, ...]
    prices: Numbers
    mixture: tuple[tuple[Choice, float], ...]


def relax(problem: PlacementProblem, state: int | None = None, close: float = 0.0) -> Relaxed:
    """The greatest bound that prices for both memories give, with the choices met on the way.

    state: bound only placements in that state (`attention_states`). close: share of the bound that is near enough.
    """
    on_gpu = None if state is None else attention_states(problem).bytes
    most = limits(problem, None if on_gpu is None else on_gpu[state])
    priced = np.flatnonzero(np.isfinite(most))
    parts = problem.n_layers * problem.ends_of_groups[-1] * problem.row_bytes
    size = float(parts + problem.attention.bytes.sum() + problem.ends.bytes.sum())
    mixture = Mixture(len(priced), 2 * UNREACHABLE)
    prices, bound, of_bound = np.zeros(2), -math.inf, np.zeros(2)
    met: dict[Choice, None] = {}
    for _ in range(MOST_ROUNDS):
        choice = cheapest(problem, prices, state)
        if choice is None:
            return Relaxed(math.inf, (), prices, ())
        cost, over = problem.cost(choice), (np.array(problem.taken(choice)) - most)[priced]
        if (value := cost + float(prices[priced] @ over)) > bound:
            bound, of_bound = value, prices
        if choice in met:
            break
        met[choice] = None
        mixture.add(cost / problem.dearest, over / size)
        found, above = mixture.prices()
        if above * problem.dearest - bound <= max(CLOSE * problem.dearest, close * bound):
            break
        prices = np.zeros(2)
        prices[priced] = found * problem.dearest / size
    bound = bound if bound <= UNREACHABLE * problem.dearest else math.inf
    choices = tuple(met)
    mixed = tuple((choices[i], share) for i, share in mixture.shares().items())
    return Relaxed(bound, choices, of_bound, mixed)


def bounds_by_state(problem: PlacementProblem, prices: Numbers) -> Numbers:
    """Bounds `[states]` of placements in each state, all at the same prices of memory."""
    states = attention_states(problem)
    layers, ends, _ = _at_prices(problem, prices)
    total, _ = _walk(problem, layers, ends, states)
    budgets = np.where(prices > 0, limits(problem, states.bytes), 0) @ prices
    return np.asarray(_ended(problem, total, ends).min(axis=(0, 1, 2)) - budgets)


def cheapest(problem: PlacementProblem, prices: Numbers, state: int | None) -> Choice | None:
    """The choice of least cost at `prices [2]` of a byte of GPU memory and of RAM; in a state where that is given.

    None where no choice is in that state.
    """
    layers, ends, cuts = _at_prices(problem, prices)
    states = None if state is None else attention_states(problem)
    total, from_gpu = _walk(problem, layers, ends, states)
    at = state or 0
    ended = _ended(problem, total[:, :, at : at + 1], ends)[:, :, :, 0]
    if not np.isfinite(ended).any():
        return None
    start, last, end = (int(i) for i in np.unravel_index(int(ended.argmin()), ended.shape))
    units = [last]
    for layer in reversed(range(problem.n_layers)):
        at -= units[-1] * states.shifts[layer] if states is not None else 0
        units.append(int(from_gpu[layer][start, units[-1], at]))
    attention = tuple(reversed(units[:-1]))
    every_layer = np.arange(problem.n_layers)
    chosen = cuts[every_layer, np.array(attention)]
    kept = np.full(problem.n_layers, problem.n_groups)
    if problem.flash is not None:
        every = np.arange(problem.n_groups + 1)
        costs = problem.layer_costs(every_layer[:, None], np.array(attention)[:, None], chosen[:, None], every)
        kept = (costs + problem.ends_of_groups * (problem.row_bytes * prices[1])).argmin(axis=1)
    return Choice(tuple(chosen.tolist()), tuple(kept.tolist()), attention, start, end)


def _at_prices(problem: PlacementProblem, prices: Numbers) -> tuple[Numbers, Numbers, npt.NDArray[np.int64]]:
    """Costs `[layers, 2]` of layers and `[2, 2]` of the ends, memory paid for, and the layers' cuts at these costs."""
    of_gpu, of_ram = (float(price) for price in prices)
    cuts = np.arange(problem.n_groups + 1)
    costs = _least_by_cut(problem, of_ram) + problem.ends_of_groups * (problem.row_bytes * (of_gpu - of_ram))
    both = np.stack((costs + problem.hand_over * (cuts > 0), costs + problem.hand_over * (cuts < cuts[-1])), axis=1)
    chosen = both.argmin(axis=2)
    byte_prices = np.array([of_ram, of_gpu])
    layers = np.take_along_axis(both, chosen[:, :, None], axis=2)[:, :, 0]
    layers = layers + problem.attention.costs + problem.attention.bytes[:, None] * byte_prices
    ends = problem.ends.costs + problem.ends.bytes[:, None] * byte_prices
    return layers, ends, chosen


def _least_by_cut(problem: PlacementProblem, of_ram: float) -> Numbers:
    """What rows cost at least by layer and cut, `[layers, groups + 1]`, all that is kept in memory paid for as in RAM.

    With cut c, groups kept k and the work F_k of what is on flash, a layer ends with the CPU, at A_c + F_k + s G_c, up
    to some k, and beyond with the GPU, at G_c + s' (A_c + F_k). Each is least where F_k plus the price is, within its
    range of k; ranges of the first kind lie within each other, and so share a place from which minima are summed up.
    """
    gpu, cpu = problem.gpu_work, problem.cpu_work
    held = problem.ends_of_groups * (problem.row_bytes * of_ram)
    if problem.flash is None:
        return np.where(problem.closed, np.inf, problem.joined(gpu, cpu) + held[-1])
    last, centre = problem.cpu_ends_last
    places = np.arange(problem.n_groups + 1)  # of cuts and of groups kept
    with_cpu, with_gpu = problem.flash_work + held, problem.cpu_share * problem.flash_work + held
    up_to = np.minimum.accumulate(np.where(places <= centre[:, None], with_cpu, np.inf)[:, ::-1], axis=1)[:, ::-1]
    beyond = np.minimum.accumulate(np.where(places >= centre[:, None], with_cpu, np.inf), axis=1)
    nothing = np.full((problem.n_layers, 1), np.inf)
    first = np.minimum(up_to, np.take_along_axis(np.hstack((nothing, beyond)), last + 1, axis=1))
    first = np.where(places <= last, first, np.inf)
    rest = np.hstack((np.minimum.accumulate(with_gpu[:, ::-1], axis=1)[:, ::-1], nothing))
    second = np.take_along_axis(rest, np.maximum(places, last + 1), axis=1)
    ends = np.minimum(cpu + problem.gpu_share * gpu + first, gpu + problem.cpu_share * cpu + second)
    return np.where(problem.closed, np.inf, ends)


def _walk(
    problem: PlacementProblem, layers: Numbers, ends: Numbers, states: States | None
) -> tuple[Numbers, list[npt.NDArray[np.bool_]]]:
    """Least costs `[start, unit, states]` up to the last attention, and whether each layer's came from the GPU.

    start: unit of the embeddings. A change of unit costs half a hand-over (Viterbi's walk). Without states there is
    one.
    """
    half = problem.hand_over / 2 * (1 - np.eye(2))[:, :, None]
    total = np.full((2, 2, 1 if states is None else len(states.attentions)), np.inf)
    total[(CPU, GPU), (CPU, GPU), 0] = ends[0]
    from_gpu = []
    for layer, costs in enumerate(layers):
        by_cpu, by_gpu = total[:, CPU, None] + half[CPU], total[:, GPU, None] + half[GPU]
        from_gpu.append(by_gpu < by_cpu)
        total = np.minimum(by_cpu, by_gpu) + costs[:, None]
        if states is not None:
            shift = states.shifts[layer]
            total[:, GPU, shift:] = total[:, GPU, :-shift]
            total[:, GPU, :shift] = np.inf
    return total, from_gpu


def _ended(problem: PlacementProblem, total: Numbers, ends: Numbers) -> Numbers:
    """Costs `[start, last, head, states]` of walks, the head included; infinite where one table is torn."""
    apart = 1 - np.eye(2)
    costs = total[:, :, None, :] + (problem.hand_over / 2 * apart + ends[1])[:, :, None]
    if problem.tied:
        costs[(CPU, GPU), :, (GPU, CPU)] = np.inf
    return np.asarray(costs)
