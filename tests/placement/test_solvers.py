"""HiGHS and CBC each find the best of all choices, and what they say of their searches is read right."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from placement.problem import PlacementProblem
from placement.solvers import available_solvers, read_cbc_log, run_solver

Small = Callable[[int], PlacementProblem]


def check(problem: PlacementProblem, best: Any, solver: Any) -> None:
    outcome = run_solver(problem, solver, 60, 0.0)
    if best.choice is None:
        assert (outcome.ended, outcome.choice) == ("infeasible", None)
        return
    assert outcome.ended == "optimal" and outcome.choice is not None and outcome.bound is not None
    assert problem.allows(outcome.choice)
    assert problem.cost(outcome.choice) == pytest.approx(best.cost, abs=1e-9)
    assert outcome.bound <= best.cost + 1e-6 * problem.dearest


def test_both_solvers_are_here() -> None:
    assert available_solvers() == ("highs", "cbc")


@pytest.mark.parametrize(("solver", "seeds"), [("highs", range(80)), ("cbc", [*range(80, 110), 10_070])])
def test_a_solver_alone_finds_the_best_of_all(
    small_problem: Small, try_all: Callable[..., Any], solver: str, seeds: range
) -> None:
    for seed in seeds:
        check(small_problem(seed), try_all(small_problem(seed)), solver)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_solver_alone_finds_the_best_of_all_a_thousand_times(
    small_problem: Small, try_all: Callable[..., Any], solver: str
) -> None:
    for seed in range(10_000, 11_000):
        check(small_problem(seed), try_all(small_problem(seed)), solver)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_known_choice_is_where_a_solver_starts(
    small_problem: Small, try_all: Callable[..., Any], solver: Any
) -> None:
    for seed in range(15):
        problem, best = small_problem(seed), try_all(small_problem(seed))
        if best.choice is not None:
            outcome = run_solver(problem, solver, 60, 0.0, start=best.choice)
            assert outcome.choice is not None
            assert problem.cost(outcome.choice) == pytest.approx(best.cost, abs=1e-9)


def test_a_cost_that_is_enough_ends_the_search(hard: PlacementProblem) -> None:
    full = run_solver(hard, "highs", 60, 0.0)
    assert full.choice is not None
    enough = hard.cost(full.choice) * 1.1
    outcome = run_solver(hard, "highs", 60, 0.0, enough=enough)
    assert outcome.ended == "optimal" and outcome.choice is not None
    assert hard.cost(outcome.choice) <= enough * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_out_of_time_is_said_and_bounds_stay_true(hard: PlacementProblem, solver: Any) -> None:
    best = run_solver(hard, "highs", 60, 0.0).choice
    assert best is not None
    outcome = run_solver(hard, solver, 1e-6, 0.0)
    assert outcome.ended == "time limit"
    assert outcome.bound is None or outcome.bound <= hard.cost(best)
    assert outcome.choice is None or hard.cost(outcome.choice) >= hard.cost(best) - 1e-9


LIMIT = "Result - Stopped on time limit\n\n"
WITHIN = "Result - Optimal solution found (within gap tolerance)\n\n"


@pytest.mark.parametrize(
    ("log", "status", "found", "bound"),
    [
        ("Result - Optimal solution found\n\nObjective value:   12.5\n", "Optimal", True, 12.5),
        (WITHIN + "Objective value:  8.0\nLower bound:  7.500\n", "Optimal", True, 7.4995),
        (LIMIT + "No feasible solution found\nLower bound:  7.500\n", "Stopped on time limit", False, 7.4995),
        (LIMIT + "Objective value:  8.0\nLower bound:  7.5\nGap:  0.06\n", "Stopped on time limit", True, 7.4995),
        (LIMIT + "Objective value:  8.0\n", "Stopped on time limit", True, None),
        ("Problem is infeasible - 0.00 seconds\n", "Problem is infeasible", False, None),
        ("Result - Problem proven infeasible\n\nNo feasible found\n", "Problem proven infeasible", False, None),
        ("Result - Linear relaxation infeasible\n", "Linear relaxation infeasible", False, None),
        ("Pre-processing says infeasible or unbounded\n", "Pre-processing says infeasible", False, None),
    ],
)
def test_cbcs_log_is_read(log: str, status: str, found: bool, bound: float | None) -> None:
    assert read_cbc_log("Welcome to the CBC MILP Solver\n" + log) == (status, found, bound)


@pytest.mark.parametrize("log", ["", "Segmentation fault\n", "Result - Something else\n"])
def test_a_log_without_a_result_is_refused(log: str) -> None:
    with pytest.raises(ValueError, match="no result"):
        read_cbc_log(log)


def test_bounds_of_logs_are_no_tighter_than_they_are_printed() -> None:
    # CBC prints three decimals: a bound of 7.4996 reads 7.500.
    _, _, bound = read_cbc_log(WITHIN + "Objective value:  8.0\nLower bound:  7.500\n")
    assert bound is not None and bound <= 7.4996
    assert not math.isnan(bound)
