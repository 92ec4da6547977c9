"""What is solved is the best of all choices; a solver that is late, dead, missing or wrong leaves a good one."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import solvers
from placement.problem import Choice, PlacementProblem
from placement.solve import NoPlacementError, solve
from placement.solvers import Outcome
from profiler.artifacts import UserError

Small = Callable[[int], PlacementProblem]
TryAll = Callable[[PlacementProblem], Any]


def check(problem: PlacementProblem, best: Any, **how: Any) -> str:
    """Compare an answer with the best of all; who found it."""
    if best.choice is None:
        with pytest.raises(NoPlacementError, match="no placement keeps the budgets"):
            solve(problem, gap=0.0, **how)
        return "none"
    choice, report = solve(problem, gap=0.0, **how)
    assert problem.allows(choice)
    assert problem.cost(choice) == report.cost == pytest.approx(best.cost, abs=1e-9)
    assert (report.status, report.objective, report.warnings) == ("optimal", problem.objective, ())
    assert report.gap == pytest.approx(0, abs=1e-6)
    return report.name


def test_what_is_solved_is_the_best_of_all(small_problem: Small, try_all: TryAll) -> None:
    names = [check(small_problem(seed), try_all(small_problem(seed))) for seed in range(140)]
    # The instances are worth trying: some need no solver, some do, some have no solution.
    assert min(names.count(name) for name in ("greedy", "highs", "none")) >= 10


@pytest.mark.parametrize(("solver", "seeds"), [("highs", range(100, 130)), ("cbc", range(130, 150))])
def test_each_solver_when_it_must_answer(small_problem: Small, try_all: TryAll, solver: str, seeds: range) -> None:
    for seed in seeds:
        assert check(small_problem(seed), try_all(small_problem(seed)), solver=solver) in (solver, "none")


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, "highs", "cbc"])
def test_what_is_solved_is_the_best_of_all_a_thousand_times(
    small_problem: Small, try_all: TryAll, solver: str | None
) -> None:
    for seed in range(20_000, 21_000):
        check(small_problem(seed), try_all(small_problem(seed)), solver=solver)


def test_greedy_alone_is_honest(small_problem: Small, try_all: TryAll) -> None:
    for seed in range(60):
        problem, best = small_problem(seed), try_all(small_problem(seed))
        if best.choice is None:
            continue
        try:
            choice, report = solve(problem, gap=0.0, solver="greedy")
        except NoPlacementError:
            continue  # it may miss what barely fits
        assert problem.allows(choice) and report.name == "greedy" and report.gap is not None
        assert report.cost * (1 - report.gap) <= best.cost + 1e-9
        assert report.status == ("optimal" if report.gap <= 1e-9 else "unproved")


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    vram=st.lists(st.integers(0, 90), min_size=2, max_size=4),
    ram=st.lists(st.integers(0, 90), min_size=2, max_size=4),
)
def test_the_cost_never_rises_with_a_budget(small_problem: Small, seed: int, vram: list[int], ram: list[int]) -> None:
    problem = small_problem(seed)

    def cost(**budgets: int | None) -> float:
        try:
            return solve(replace(problem, **budgets), gap=0.0)[1].cost  # type: ignore[arg-type]
        except NoPlacementError:
            return float("inf")

    for costs in (
        [cost(vram=size) for size in sorted(vram)],
        [*(cost(ram=size) for size in sorted(ram)), cost(ram=None)],
    ):
        assert all(after <= before + 1e-9 for before, after in itertools.pairwise(costs))


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_out_of_time_there_is_still_a_placement_and_an_honest_report(hard: PlacementProblem, solver: Any) -> None:
    _, best = solve(hard, solver="highs", time_limit=60, gap=0.0)
    assert best.status == "optimal"
    choice, report = solve(hard, solver=solver, time_limit=1e-6, gap=0.0)
    assert hard.allows(choice)
    assert report.status == "time limit"
    assert report.gap is not None and report.gap > 0
    assert report.cost * (1 - report.gap) - 1e-9 <= best.cost <= report.cost
    if report.name == "greedy":
        assert report.warnings[-1].startswith(f"{solver} found nothing better than greedy's placement in ")


@pytest.mark.parametrize("solver", ["highs", "cbc", None])
def test_a_gap_that_is_allowed_is_stated(hard: PlacementProblem, solver: Any) -> None:
    _, best = solve(hard, solver="highs", time_limit=60, gap=0.0)
    _, report = solve(hard, solver=solver, gap=0.2, time_limit=60)
    assert report.status == "optimal"
    assert report.gap is not None and report.gap <= 0.2
    assert report.cost * (1 - report.gap) - 1e-6 <= best.cost <= report.cost + 1e-9


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_gap_is_a_share_of_the_cost_and_not_of_what_is_saved(hard: PlacementProblem, solver: Any) -> None:
    for vram in range(10_000, 14_500, 500):
        _, report = solve(replace(hard, vram=vram), solver=solver, gap=0.05, time_limit=60)
        assert report.status == "optimal"
        assert report.gap is not None and report.gap <= 0.05 + 1e-6


def test_without_a_solver_greedy_answers_and_says_so(hard: PlacementProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "available_solvers", lambda: ())
    choice, report = solve(hard)
    assert hard.allows(choice) and sum(choice.cuts) > 0
    assert (report.name, report.status) == ("greedy", "unproved")
    assert "none is installed; install one with: pip install highspy" in report.warnings[-1]
    with pytest.raises(UserError, match=r"cbc is not installed; there are: greedy"):
        solve(hard, solver="cbc")


@pytest.mark.parametrize("fate", ["kill -9 $$", "exit 3", "exit 0"])
def test_a_solver_that_dies_leaves_greedys_placement(
    hard: PlacementProblem, fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cbc"
    program.write_text(f"#!/bin/sh\n{fate}\n")
    program.chmod(0o755)
    monkeypatch.setattr(solvers, "CBC", program)
    choice, report = solve(hard, solver="cbc")
    assert choice == solve(hard, solver="greedy")[0]
    assert (report.name, report.status) == ("greedy", "unproved")
    assert "cbc failed" in report.warnings[0]
    assert "the placement is greedy's" in report.warnings[1]
    assert report.gap is not None and report.gap > 0


def test_after_a_crash_the_next_solver_is_asked(hard: PlacementProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: pulp.HiGHS, lp: pulp.LpProblem) -> None:
        raise MemoryError

    monkeypatch.setattr(pulp.HiGHS, "callSolver", crash)
    monkeypatch.setattr(solvers._Started, "callSolver", crash)
    _, report = solve(hard, time_limit=60)
    assert (report.name, report.status) == ("cbc", "optimal")
    assert report.warnings == ("the solver highs failed (MemoryError)",)


@pytest.mark.parametrize("ended", ["optimal", "time limit"])
def test_a_solver_that_breaks_a_budget_is_not_believed(
    hard: PlacementProblem, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = (hard.n_groups,) * hard.n_layers
    over = Choice(everything, everything, (0,) * hard.n_layers, 0, 0)
    assert not hard.fits(over)
    monkeypatch.setattr(solvers, "run_solver", lambda *_: Outcome(ended, over, None))
    choice, report = solve(hard)
    assert hard.allows(choice)
    assert (report.name, report.status) == ("greedy", "unproved" if ended == "optimal" else "time limit")
