"""A placement by whatever proves it first, and an honest report of how: relaxation and greedy, then a solver."""

from __future__ import annotations

import math
import time

from placement import solvers
from placement.plan import SolverName, SolverReport, SolverStatus
from placement.problem import Choice, PlacementProblem
from placement.search import Search
from placement.solvers import Outcome
from placement.steps import improve
from profiler.artifacts import UserError

TIME_LIMIT = 10.0
GAP = 1e-3
TOLERANCE = 1e-6  # of solvers, relative


class NoPlacementError(UserError):
    """No choice keeps both budgets."""


def solve(
    problem: PlacementProblem, *, time_limit: float = TIME_LIMIT, gap: float = GAP, solver: SolverName | None = None
) -> tuple[Choice, SolverReport]:
    """The cheapest choice that can be found, and how it was found.

    First the relaxation gives a bound, and branching and steps a choice; where that is within the relative `gap`, it is
    proved, and no solver is asked. Else HiGHS goes on from there, or CBC where HiGHS is missing or fails. The first
    takes no more than about half of `time_limit` seconds, a solver what is left. `solver` names one of them alone,
    which then runs in any case, or greedy.

    Raises:
        NoPlacementError: no choice keeps the budgets, or none that does was found.
        UserError: the named solver is not there.
    """
    started = time.perf_counter()
    search = Search(problem, gap, started + time_limit / 2)
    search.begin()
    ended: SolverStatus = "unproved"
    needed = not search.proved and math.isfinite(search.bound)
    if solver in ("highs", "cbc") or (solver is None and needed):
        left = started + time_limit - time.perf_counter()
        ended = _ask(search, solver, max(left, time_limit / 2))
    if search.best is None:
        raise NoPlacementError("no placement keeps the budgets")
    status: SolverStatus = "optimal" if search.proved else ended
    seconds = time.perf_counter() - started
    warnings = tuple(search.warnings)
    report = SolverReport(search.name, status, search.reached, seconds, search.cost, problem.objective, warnings)
    return search.best, report


def _ask(search: Search, solver: SolverName | None, time_limit: float) -> SolverStatus:
    """Let the first solver that comes to an end improve the search; returns how it ended."""
    available = solvers.available_solvers()
    if solver is not None and solver not in available:
        raise UserError(f"the solver {solver} is not installed; there are: {', '.join((*available, 'greedy'))}")
    spare = search.gap * max(search.bound, 0.0) if math.isfinite(search.bound) else 0.0
    enough = search.bound / (1 - search.gap) if math.isfinite(search.bound) and solver is None else -math.inf
    for candidate in available:
        if solver not in (None, candidate):
            continue
        try:
            outcome = solvers.run_solver(search.problem, candidate, time_limit, spare, search.best, enough)
        except Exception as error:
            # Whatever a solver dies of, there is another way to a placement: no plan may end without one.
            search.warnings.append(f"the solver {candidate} failed ({str(error) or type(error).__name__})")
            continue
        return _take(search, candidate, outcome, time_limit)
    missing = "" if available else ", as none is installed; install one with: pip install highspy"
    search.warnings.append(f"no solver answered: the placement is greedy's{missing}")
    return "unproved"


def _take(search: Search, name: SolverName, outcome: Outcome, time_limit: float) -> SolverStatus:
    """Hold a solver's answer against the best; returns how it ended, as far as that can be believed."""
    if outcome.bound is not None:
        search.bound = max(search.bound, outcome.bound)
    before, believed = search.cost, outcome.choice is not None and search.problem.allows(outcome.choice)
    if outcome.choice is not None and believed:
        search.offer(improve(search.problem, outcome.choice), name)
        if outcome.ended == "optimal" and search.problem.cost(outcome.choice) <= before:
            search.name = name  # it says the same, and proved it
    if outcome.ended == "time limit":
        if search.name != name:
            search.warnings.append(f"{name} found nothing better than greedy's placement in {time_limit:.3g} s")
        return "time limit"
    # Solvers stop within tolerances of their own.
    near = search.reached is not None and search.reached <= search.gap + TOLERANCE
    return "optimal" if believed and near else "unproved"
