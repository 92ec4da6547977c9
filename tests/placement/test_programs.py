"""The integer program says of every choice what the problem says of it: what is allowed, and what it costs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pulp
import pytest

from placement.problem import Choice, PlacementProblem
from placement.programs import Program, build_program

TOLERANCE = 1e-6


def take(program: Program, problem: PlacementProblem, choice: Choice) -> tuple[bool, float]:
    """Whether a choice keeps the program's constraints, and what its objective makes of it.

    What is not chosen (times, hand-overs, changes) is as little as the constraints let it be.
    """
    chosen = program.values(choice)
    for variable, value in chosen:
        variable.varValue = value
    names = {variable.name for variable, _ in chosen}
    for variable in program.model.variables():
        if variable.name not in names:
            variable.varValue = 0.0
            bounds = [c for c in program.model.constraints() if variable in c.expr]
            variable.varValue = max(0.0, *(-c.value() / c[variable] for c in bounds))
    kept = all(constraint.valid(TOLERANCE) for constraint in program.model.constraints())
    return kept, pulp.value(program.model.objective) * program.unit


def test_every_choice_costs_what_the_problem_says_and_is_allowed_where_it_says(
    small_problem: Callable[[int], PlacementProblem], random_choice: Callable[..., Choice]
) -> None:
    random = np.random.default_rng(0)
    allowed = refused = 0
    for seed in range(120):
        problem = small_problem(seed)
        program = build_program(problem)
        for _ in range(4):
            choice = random_choice(problem, random)
            kept, cost = take(program, problem, choice)
            assert kept == problem.allows(choice)
            if kept:
                assert cost == pytest.approx(problem.cost(choice), abs=1e-9)
                assert program.choice(problem) == choice
            allowed, refused = allowed + kept, refused + (not kept)
    assert allowed > 50 and refused > 50


def test_variables_are_few(small_problem: Callable[[int], PlacementProblem]) -> None:
    for seed in range(40):
        problem = small_problem(seed)
        layers, groups = problem.n_layers, problem.n_groups
        expected = layers * groups * (2 if problem.flash is not None else 1) + layers + 2 - problem.tied
        found: dict[str, int] = {}
        for variable in build_program(problem).model.variables():
            found[variable.name[0]] = found.get(variable.name[0], 0) + 1
        assert sum(found.get(name, 0) for name in "xraeh") == expected
        assert found.get("t", 0) == layers * (problem.objective == "latency")
        assert found.get("d", 0) == (layers + 1 if problem.hand_over else 0)


def test_a_layer_that_may_not_use_the_gpu_does_not(small_problem: Callable[[int], PlacementProblem]) -> None:
    problem: Any = next(p for p in map(small_problem, range(200)) if None in p.least)
    program = build_program(problem)
    closed = problem.least.index(None)
    cuts = tuple(1 if layer == closed else 0 for layer in range(problem.n_layers))
    kept, _ = take(program, problem, Choice(cuts, (problem.n_groups,) * problem.n_layers, (0,) * len(cuts), 0, 0))
    assert not kept
