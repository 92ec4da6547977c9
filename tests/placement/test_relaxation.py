"""The relaxation's bounds are below the best of all choices, and meet it where memory does not bind."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import placement.states
from placement.problem import Choice, DenseParts, PlacementProblem
from placement.relaxation import bounds_by_state, cheapest, relax

Small = Callable[[int], PlacementProblem]
TryAll = Callable[[PlacementProblem], Any]


def below(bound: float, best: float) -> bool:
    return bound <= best + 1e-9 * max(1.0, abs(best)) if math.isfinite(best) else True


def check_states(problem: PlacementProblem, best: Any, bounds: Any) -> None:
    """Hold the bounds of states against the best choice in each."""
    states = placement.states.attention_states(problem)
    for state, (count, bound) in enumerate(zip(states.attentions, bounds, strict=True)):
        found = [
            cost
            for (there, taken), cost in best.by_attentions.items()
            if there == count and (states.bytes is None or taken == states.bytes[state])
        ]
        assert below(bound, min(found, default=math.inf))
        if found:
            assert below(relax(problem, state).bound, min(found))
        elif states.bytes is not None:
            assert math.isinf(bound) and math.isinf(relax(problem, state).bound)


@pytest.mark.parametrize("most", [0, 10**6])
def test_bounds_are_never_above_the_best_of_all(
    small_problem: Small, try_all: TryAll, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(placement.states, "MOST_STATES", most)
    for seed in range(50):
        problem, best = small_problem(seed), try_all(small_problem(seed))
        relaxed = relax(problem)
        assert below(relaxed.bound, best.cost)
        assert relaxed.prices.min() >= 0
        check_states(problem, best, bounds_by_state(problem, relaxed.prices))
        if best.choice is not None:
            ends = problem.with_ends(best.choice.embeddings, best.choice.head)
            check_states(ends, try_all(ends), bounds_by_state(ends, relaxed.prices))


def test_bounds_hold_at_any_prices(small_problem: Small, try_all: TryAll) -> None:
    random = np.random.default_rng(0)
    for seed in range(40):
        problem, best = small_problem(seed), try_all(small_problem(seed))
        prices = random.exponential(0.2, 2) * [1, problem.ram is not None]
        check_states(problem, best, bounds_by_state(problem, prices))


def test_with_room_for_all_the_bound_is_the_best(small_problem: Small, try_all: TryAll) -> None:
    for seed in range(60):
        problem = replace(small_problem(seed), vram=10_000, ram=None)
        best, relaxed = try_all(problem), relax(problem)
        assert relaxed.bound == pytest.approx(best.cost, abs=1e-9)
        assert problem.cost(relaxed.choices[-1]) == pytest.approx(best.cost, abs=1e-9)
        assert not relaxed.prices.any()
        states = placement.states.attention_states(problem)
        assert states.bytes is not None
        for state, key in enumerate(zip(states.attentions.tolist(), states.bytes.tolist(), strict=True)):
            if key in best.by_attentions:
                assert relax(problem, state).bound == pytest.approx(best.by_attentions[key], abs=1e-9)


def test_what_cannot_fit_is_found_out(small_problem: Small, try_all: TryAll) -> None:
    found = 0
    for seed in range(200):
        problem = small_problem(seed)
        parts = int(problem.attention.bytes.sum() + problem.ends.bytes.sum())
        if problem.flash is None:
            parts += problem.n_layers * int(problem.groups.sum()) * problem.row_bytes
        if problem.ram is not None and parts > problem.vram + problem.ram:
            assert try_all(problem).choice is None
            assert relax(problem).bound == math.inf
            found += 1
    assert found > 10


def test_the_cheapest_choice_costs_least_of_all_with_memory_paid_for(
    small_problem: Small, random_choice: Callable[..., Any]
) -> None:
    random = np.random.default_rng(1)
    for seed in range(100):
        problem = small_problem(seed)
        prices = random.exponential(0.3, 2)

        def paid(choice: Any, problem: PlacementProblem = problem, prices: Any = prices) -> float:
            return problem.cost(choice) + float(prices @ np.array(problem.taken(choice)))

        least = paid(cheapest(problem, prices, None))
        there = random_choice(problem, random).attention
        states = placement.states.attention_states(problem)
        state = int(sum(unit * shift for unit, shift in zip(there, states.shifts, strict=True)))
        counted = cheapest(problem, prices, state)
        assert sum(counted.attention) == sum(there) == states.attentions[state]
        assert paid(counted) >= least - 1e-12
        for _ in range(30):
            other = random_choice(problem, random)
            assert paid(other) >= least - 1e-9
            if other.attention == there:
                assert paid(other) >= paid(counted) - 1e-9


def one_layer(random: np.random.Generator) -> PlacementProblem:
    """Many groups, three places for each."""
    contention = 1 + random.random(2) * random.integers(0, 2)
    if (1 / contention).sum() <= 1:
        contention = np.array([2.0, 2.0])
    heat = random.random((1, 12)) * random.integers(0, 2, (1, 12))
    parts = DenseParts(random.integers(0, 20, 1), random.random((1, 2)))
    return PlacementProblem(
        objective="latency",
        groups=np.full(12, 3),
        row_bytes=1,
        gpu=heat * random.uniform(0, 2),
        cpu=heat,
        flash=random.random((1, 12)) * float(random.choice([0, 0.1, 3])),
        gpu_start=0.1 * random.integers(0, 2),
        cpu_start=0.2 * random.integers(0, 2),
        gpu_share=contention[0] * (1 - 1 / contention[1]),
        cpu_share=contention[1] * (1 - 1 / contention[0]),
        hand_over=float(random.choice([0, 0.3])),
        least=(int(random.choice([0, 0, 10])),),
        attention=parts,
        ends=DenseParts(np.zeros(2, dtype=np.int64), np.zeros((2, 2))),
        tied=False,
        vram=20,
        ram=20,
    )


def test_cuts_and_what_is_kept_are_the_cheapest_together() -> None:
    random = np.random.default_rng(3)
    for _ in range(150):
        problem = one_layer(random)
        prices = random.exponential(0.1, 2) * random.integers(0, 2, 2)

        def paid(choice: Choice, problem: PlacementProblem = problem, prices: Any = prices) -> float:
            return problem.cost(choice) + float(prices @ np.array(problem.taken(choice)))

        every = (
            Choice((cut,), (kept,), (unit,), unit, unit)
            for unit in (0, 1)
            for cut in range(13)
            for kept in range(cut, 13)
        )
        assert paid(cheapest(problem, prices, None)) == pytest.approx(min(map(paid, every)), abs=1e-12)


def test_dense_parts_held_in_place_stay_there(small_problem: Small, try_all: TryAll) -> None:
    for seed in range(100):
        problem, best = small_problem(seed), try_all(small_problem(seed))
        if best.choice is None:
            continue
        held = problem.with_dense(best.choice)
        relaxed = relax(held)
        assert below(relaxed.bound, best.cost)
        for choice in relaxed.choices:
            assert (choice.attention, choice.embeddings, choice.head) == (
                best.choice.attention,
                best.choice.embeddings,
                best.choice.head,
            )
