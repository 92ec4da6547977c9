"""A split of the neurons by the best solver there is, never worse than greedy's, and an honest report of it."""

from __future__ import annotations

import time

from placement import solvers
from placement.greedy import fill, greedy, relaxed_value
from placement.plan import SolverName, SolverReport, SolverStatus
from placement.problem import Cuts, SplitProblem
from placement.solvers import Outcome
from profiler.artifacts import UserError

TIME_LIMIT = 10.0
GAP = 1e-4


def solve(
    problem: SplitProblem, *, time_limit: float = TIME_LIMIT, gap: float = GAP, solver: SolverName | None = None
) -> tuple[Cuts, SolverReport]:
    """The split of most impact that can be found: cuts in groups per layer, and how they were found.

    HiGHS is asked first and CBC where it is missing or fails, each for `time_limit` seconds or to a relative `gap`;
    `solver` names one of them alone, or greedy. Whatever they say, the split returned keeps every constraint, is no
    worse than greedy's, and leaves no room that a next group would fill.

    Raises:
        UserError: no split keeps the constraints, or none that does was found; or the named solver is not there.
    """
    started = time.perf_counter()
    warnings: list[str] = []
    name, outcome = _ask(problem, solver, time_limit, gap, warnings)
    if outcome and outcome.ended == "infeasible":
        raise UserError(_no_split(problem))
    found = fill(problem, outcome.cuts) if outcome and outcome.cuts and problem.allows(outcome.cuts) else None
    proved = outcome is not None and outcome.ended == "optimal" and found is not None
    fallback = greedy(problem)
    if problem.allows(fallback) and (found is None or problem.value(fallback) > problem.value(found)):
        found = fallback
        if not proved:
            if outcome:
                warnings.append(f"{name} found nothing better than greedy's split in {time_limit:g} s")
            name = "greedy"
    if found is None:
        raise UserError(_no_split(problem))
    value = problem.value(found)
    bounds = [relaxed_value(problem) if _open(problem) else 0.0]
    if outcome and outcome.bound is not None:
        bounds.append(outcome.bound)
    reached = _gap(value, min(bounds))
    status: SolverStatus = "time limit" if outcome and outcome.ended == "time limit" else "unproved"
    if proved or (reached is not None and reached <= gap):
        status = "optimal"
    seconds = time.perf_counter() - started
    return found, SolverReport(name, status, reached, seconds, value, warnings=tuple(warnings))


def _ask(
    problem: SplitProblem, solver: SolverName | None, time_limit: float, gap: float, warnings: list[str]
) -> tuple[SolverName, Outcome | None]:
    """The first solver that comes to an end, and what it found; greedy and None where there is none, with warnings."""
    if solver == "greedy" or not _open(problem):
        return "greedy", None
    available = solvers.available_solvers()
    if solver is not None and solver not in available:
        raise UserError(f"the solver {solver} is not installed; there are: {', '.join((*available, 'greedy'))}")
    for candidate in (solver,) if solver else available:
        try:
            return candidate, solvers.run_solver(problem, candidate, time_limit, gap)
        except Exception as error:
            # Whatever a solver dies of, there is another way to a split: no plan may end without one.
            warnings.append(f"the solver {candidate} failed ({str(error) or type(error).__name__})")
    missing = "" if available else ", as none is installed; install one with: pip install highspy"
    warnings.append(f"no solver answered: the split is greedy's{missing}")
    return "greedy", None


def _open(problem: SplitProblem) -> bool:
    """Whether any layer may use the GPU and its first step fits: else there is nothing to choose."""
    layers = (layer for layer, least in enumerate(problem.least) if least is not None)
    return any(problem.rows_of(problem.first_cut(layer)) <= problem.capacity for layer in layers)


def _gap(value: float, bound: float) -> float | None:
    if bound <= value:
        return 0.0
    return (bound - value) / value if value > 0 else None


def _no_split(problem: SplitProblem) -> str:
    least = max((least or 0) for least in problem.least)
    unused = sum(least is None for least in problem.least)
    return (
        f"found no split of the neurons that fits: {problem.required} rows have no place in RAM, the GPU takes "
        f"{problem.capacity}, in groups of {int(problem.group_rows.max())}, at least {least} in a layer that uses it, "
        f"and {unused} of {len(problem.least)} layers gain nothing by using it; give a larger --ram or --vram"
    )
