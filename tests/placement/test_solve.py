"""The integer program against brute force, its constraints, and what is left when a solver is late, dead or missing."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import solvers
from placement.greedy import fill, greedy, relaxed_value
from placement.problem import SplitProblem
from placement.solve import solve
from profiler.artifacts import UserError

Make = Callable[..., SplitProblem]
TIES = 64  # values are multiples of 1/64, so that equal optima are equal as floats


def instance(seed: int, whole_groups: bool = False, free: bool = False) -> SplitProblem:
    """A problem small enough to try all its splits."""
    random = np.random.default_rng(seed)
    layers, groups = random.integers(1, 4), random.integers(1, 5)
    rows = np.full(groups, 4)
    if not whole_groups:
        rows[-1] = random.integers(1, 5)
    values = np.round(random.pareto(1, (layers, groups)) * TIES) / TIES
    if free or random.random() < 0.7:
        values = -np.sort(-values / rows * 4, axis=1) * rows / 4
        values = np.round(values * TIES) / TIES
    total = int(rows.sum())
    choices = [0, 0, *range(1, total + 1), None]
    least = tuple(0 if free else choices[random.integers(len(choices))] for _ in range(layers))
    capacity = int(random.integers(0, layers * total + 3))
    required = 0 if free or random.random() < 0.7 else int(random.integers(0, capacity + 1))
    return SplitProblem(values, rows.astype(np.int64), capacity, required, least)


def best_by_trying_all(problem: SplitProblem) -> float | None:
    """The best impact over all cuts, None where none keeps the constraints; written without the problem's methods."""
    best = None
    groups = len(problem.group_rows)
    for cuts in itertools.product(range(groups + 1), repeat=len(problem.least)):
        rows = [int(problem.group_rows[:cut].sum()) for cut in cuts]
        if not problem.required <= sum(rows) <= problem.capacity:
            continue
        if any(n and (least is None or n < least) for n, least in zip(rows, problem.least, strict=True)):
            continue
        value = float(sum(problem.values[layer, :cut].sum() for layer, cut in enumerate(cuts)))
        best = value if best is None else max(best, value)
    return best


def check_against_all(problem: SplitProblem, solver: str) -> bool:
    """Compare a solver's answer with the best of all; whether there was any."""
    best = best_by_trying_all(problem)
    if best is None:
        with pytest.raises(UserError, match="no split of the neurons"):
            solve(problem, gap=0, solver=solver)
        return False
    cuts, report = solve(problem, gap=0, solver=solver)
    assert problem.allows(cuts)
    assert report.value == pytest.approx(best, abs=1e-9)
    assert problem.value(cuts) == report.value
    assert (report.status, report.warnings) == ("optimal", ())
    assert report.gap == pytest.approx(0, abs=1e-6)
    return True


def test_highs_finds_the_best_of_all_splits() -> None:
    problems = [instance(seed) for seed in range(300)]
    solved = [check_against_all(problem, "highs") for problem in problems]
    binding = sum(any(least and least > 4 for least in problem.least) for problem in problems)
    # The instances are worth trying: most can be solved, many have a binding least, some have no solution.
    assert sum(solved) > 200
    assert binding > 100
    assert not all(solved)


def test_cbc_agrees() -> None:
    for seed in range(1000, 1060):
        check_against_all(instance(seed), "cbc")


def test_greedy_is_optimal_without_least_rows_and_with_whole_groups() -> None:
    for seed in range(2000, 2060):
        problem = instance(seed, whole_groups=True, free=True)
        _, report = solve(problem, solver="greedy")
        best = best_by_trying_all(problem)
        assert report.value == best
        assert (report.name, report.status, report.gap) == ("greedy", "optimal", 0)
        _, by_program = solve(problem, gap=0, solver="highs")
        assert by_program.value == best
        assert relaxed_value(problem) == pytest.approx(best)


def test_greedy_never_breaks_a_constraint_that_it_can_see_nor_beats_the_relaxation() -> None:
    for seed in range(3000, 3300):
        problem = instance(seed)
        cuts = greedy(problem)
        assert problem.rows(cuts) <= problem.capacity
        rows = [problem.rows_of(cut) for cut in cuts]
        assert all(n == 0 or (least is not None and n >= least) for n, least in zip(rows, problem.least, strict=True))
        best = best_by_trying_all(problem)
        assert best is None or best <= relaxed_value(problem) + 1e-9


def test_the_least_rows_of_a_layer_decide(make_problem: Make) -> None:
    # By impact alone the first layer's first group comes first; it may not go alone, and both groups do not fit.
    problem = make_problem([[9.0, 0.0], [3.0, 2.0]], [4, 4], 7, least=(8, 4))
    cuts, report = solve(problem)
    assert cuts == (0, 1)
    assert report.value == 3
    assert solve(make_problem([[9.0, 0.0], [3.0, 2.0]], [4, 4], 8, least=(8, 4)))[0] == (2, 0)
    assert solve(make_problem([[9.0, 0.0], [3.0, 2.0]], [4, 4], 8, least=(None, 4)))[0] == (0, 2)


def test_ram_that_is_short_forces_rows_onto_the_gpu(make_problem: Make) -> None:
    values = [[5.0, 0.0, 0.0], [1.0, 0.5, 0.0]]
    problem = make_problem(values, [4, 4, 2], 18, required=18)
    cuts, _ = solve(problem)
    assert problem.rows(cuts) == 18
    with pytest.raises(UserError, match="18 rows have no place in RAM"):
        solve(make_problem(values, [4, 4, 2], 18, required=18, least=(0, None)))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), order=st.lists(st.integers(0, 40), min_size=2, max_size=6))
def test_impact_never_falls_when_the_budget_rises(seed: int, order: list[int]) -> None:
    problem = instance(seed)
    values = []
    for capacity in sorted(order):
        grown = SplitProblem(problem.values, problem.group_rows, capacity, 0, problem.least)
        values.append(solve(grown, gap=0)[1].value)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))


def test_rows_without_impact_fill_the_room_that_is_left(make_problem: Make) -> None:
    problem = make_problem(np.zeros((2, 3)), [4, 4, 4], 17)
    cuts, report = solve(problem)
    assert problem.rows(cuts) == 16
    assert (report.value, report.gap, report.status) == (0, 0, "optimal")
    assert fill(problem, (1, 0)) in {(3, 1), (2, 2), (1, 3)}


def test_where_no_layer_may_use_the_gpu_nothing_is_solved(make_problem: Make) -> None:
    for problem in (
        make_problem([[3.0, 1.0]], [4, 4], 100, least=(None,)),
        make_problem([[3.0, 1.0]], [4, 4], 3),
        make_problem([[3.0, 1.0]], [4, 4], 7, least=(8,)),
    ):
        cuts, report = solve(problem)
        assert cuts == (0,)
        assert (report.value, report.gap, report.status, report.warnings) == (0, 0, "optimal", ())


@pytest.fixture
def hard() -> SplitProblem:
    """A problem whose relaxation proves nothing about greedy's answer."""
    random = np.random.default_rng(5)
    values = -np.sort(-random.pareto(1.2, (12, 20)) * random.uniform(0.5, 1.5, (12, 1)), axis=1)
    rows = np.full(20, 64)
    rows[-1] = 8
    return SplitProblem(values, rows.astype(np.int64), 2100, 0, (600,) * 12)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_out_of_time_there_is_still_a_split_and_an_honest_report(hard: SplitProblem, solver: str) -> None:
    _, best = solve(hard, solver="highs", time_limit=60)
    assert best.status == "optimal"
    cuts, report = solve(hard, solver=solver, time_limit=1e-6)
    assert hard.allows(cuts)
    assert report.status == "time limit"
    assert report.gap is not None and report.gap > 0
    assert report.value <= best.value <= report.value * (1 + report.gap) + 1e-9
    assert report.value >= hard.value(greedy(hard))
    if report.name == "greedy":
        assert f"{solver} found nothing better" in report.warnings[-1]


def test_a_gap_that_is_allowed_is_stated(hard: SplitProblem) -> None:
    _, best = solve(hard, solver="highs", time_limit=60, gap=0)
    for solver in ("highs", "cbc"):
        _, report = solve(hard, solver=solver, gap=0.2, time_limit=60)
        assert report.status == "optimal"
        assert report.gap is not None and report.gap <= 0.2
        assert best.value <= report.value * (1 + report.gap) + 1e-6


def test_without_a_solver_greedy_answers_and_says_so(hard: SplitProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "available_solvers", lambda: ())
    cuts, report = solve(hard)
    assert cuts == greedy(hard) != (0,) * 12
    assert (report.name, report.status) == ("greedy", "unproved")
    assert "none is installed" in report.warnings[-1]
    with pytest.raises(UserError, match=r"cbc is not installed; there are: greedy"):
        solve(hard, solver="cbc")


@pytest.mark.parametrize("fate", ["kill -9 $$", "exit 3", "exit 0"])
def test_a_solver_that_dies_leaves_greedys_split(
    hard: SplitProblem, fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cbc"
    program.write_text(f"#!/bin/sh\n{fate}\n")
    program.chmod(0o755)
    monkeypatch.setattr(solvers, "CBC", program)
    cuts, report = solve(hard, solver="cbc")
    assert cuts == greedy(hard)
    assert (report.name, report.status) == ("greedy", "unproved")
    assert "cbc failed" in report.warnings[0]
    assert "the split is greedy's" in report.warnings[1]
    assert report.gap is not None and report.gap > 0


def test_after_a_crash_the_next_solver_is_asked(hard: SplitProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: pulp.HiGHS, lp: pulp.LpProblem) -> None:
        raise MemoryError

    monkeypatch.setattr(pulp.HiGHS, "callSolver", crash)
    _, report = solve(hard, time_limit=60)
    assert (report.name, report.status) == ("cbc", "optimal")
    assert report.warnings == ("the solver highs failed (MemoryError)",)


@pytest.mark.parametrize(
    ("log", "status", "found", "bound"),
    [
        ("Result - Optimal solution found\n\nObjective value:   12.5\n", "Optimal", True, 12.5),
        (
            "Result - Optimal solution found (within gap tolerance)\n\nObjective value:  8.0\nUpper bound:  9.500\n",
            "Optimal",
            True,
            9.5005,
        ),
        (
            "Result - Stopped on time limit\n\nNo feasible solution found\nUpper bound:  9.500\n",
            "Stopped on time limit",
            False,
            9.5005,
        ),
        (
            "Result - Stopped on time limit\n\nObjective value:  8.0\nUpper bound:  9.500\nGap:  -0.16\n",
            "Stopped on time limit",
            True,
            9.5005,
        ),
        ("Problem is infeasible - 0.00 seconds\n", "Problem is infeasible", False, None),
        ("Result - Problem proven infeasible\n\nNo feasible found\n", "Problem proven infeasible", False, None),
    ],
)
def test_cbcs_log_is_read(log: str, status: str, found: bool, bound: float | None) -> None:
    assert solvers.read_cbc_log("Welcome to the CBC MILP Solver\n" + log) == (status, found, bound)


def test_a_log_without_a_result_is_refused() -> None:
    with pytest.raises(ValueError, match="no result"):
        solvers.read_cbc_log("Segmentation fault\n")
