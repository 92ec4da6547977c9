"""A placement by whatever proves it first, and an honest report of how: relaxation and greedy, then a solver."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from placement import solvers
from placement.greedy import improve
from placement.plan import SolverName, SolverReport, SolverStatus
from placement.problem import GPU, Choice, PlacementProblem
from placement.relaxation import bounds_by_attentions, relax
from placement.solvers import Outcome
from profiler.artifacts import UserError

TIME_LIMIT = 10.0
GAP = 1e-3
LAST_MET = 2  # of the choices that a relaxation meets, those near its best prices
PROVED = 1e-9  # a gap within rounding of none


class NoPlacementError(UserError):
    """No choice keeps both budgets."""


@dataclass
class _Search:
    """The best so far: who found it, what no choice falls below, and what the user should know."""

    problem: PlacementProblem
    best: Choice | None = None
    name: SolverName = "greedy"
    bound: float = -math.inf
    warnings: list[str] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """What the best costs; infinite without one."""
        return math.inf if self.best is None else self.problem.cost(self.best)

    @property
    def gap(self) -> float | None:
        """How much less another choice can cost at most, as a share of the best's cost; None without a best."""
        if self.best is None:
            return None
        return 0.0 if self.cost <= self.bound else (self.cost - self.bound) / self.cost

    def offer(self, choice: Choice, name: SolverName) -> None:
        """Take a choice if it is allowed and costs less."""
        if self.problem.allows(choice) and self.problem.cost(choice) < self.cost:
            self.best, self.name = choice, name

    def proved(self, gap: float) -> bool:
        """Whether nothing costs less by more than `gap`."""
        return self.gap is not None and self.gap <= max(gap, PROVED)


def solve(
    problem: PlacementProblem, *, time_limit: float = TIME_LIMIT, gap: float = GAP, solver: SolverName | None = None
) -> tuple[Choice, SolverReport]:
    """The cheapest choice that can be found, and how it was found.

    First the relaxation gives a bound and greedy improves what it met; where that is within the relative `gap`, it is
    proved, and no solver is asked. Else HiGHS goes on from there, or CBC where HiGHS is missing or fails, each for
    `time_limit` seconds. `solver` names one of them alone, which then runs in any case, or greedy.

    Raises:
        NoPlacementError: no choice keeps the budgets, or none that does was found.
        UserError: the named solver is not there.
    """
    started = time.perf_counter()
    search = _Search(problem)
    _begin(search, gap)
    stopped = False
    if solver != "greedy" and (solver is not None or not search.proved(gap)):
        stopped = _ask(search, solver, time_limit, gap)
    if search.best is None:
        raise NoPlacementError("no placement keeps the budgets")
    status: SolverStatus = "time limit" if stopped else "unproved"
    if search.proved(gap):
        status = "optimal"
    seconds = time.perf_counter() - started
    warnings = tuple(search.warnings)
    report = SolverReport(search.name, status, search.gap, seconds, search.cost, problem.objective, warnings)
    return search.best, report


def _begin(search: _Search, gap: float) -> None:
    """The relaxation's bound, and choices that start from what it met."""
    problem = search.problem
    relaxed = relax(problem)
    search.bound = relaxed.bound
    fitting = [choice for choice in relaxed.choices if problem.allows(choice)]
    if fitting:
        search.offer(improve(problem, min(fitting, key=problem.cost)), "greedy")
        if not search.proved(gap):
            _branch(search, gap)
        return
    layers, groups = problem.n_layers, problem.n_groups
    everything, nothing = (groups,) * layers, (0,) * layers
    for plain in (
        Choice(nothing, everything, nothing, 0, 0),
        Choice(nothing, nothing, nothing, 0, 0),
        Choice(nothing, everything, (GPU,) * layers, GPU, GPU),
        Choice(everything, everything, (GPU,) * layers, GPU, GPU),
        Choice(everything, everything, nothing, 0, 0),
    ):
        if problem.allows(plain):
            search.offer(improve(problem, plain), "greedy")


def _branch(search: _Search, gap: float) -> None:
    """Bound placements by where embeddings and head are and how many attentions are on the GPU, and try the best.

    Dense parts are large: the relaxation fits a share of one, no placement does. With their number given, only rows are
    left to divide, and bound and placement nearly meet. Prices that are best for one number bound all the others too,
    so that most are passed over.
    """
    problem, least = search.problem, math.inf
    for embeddings, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if problem.tied and embeddings != head:
            continue
        part = problem.with_ends(embeddings, head)
        bounds = bounds_by_attentions(part, relax(part).prices)
        done = np.zeros(len(bounds), dtype=bool)
        while True:
            needed = ~done & (bounds < search.cost * (1 - gap))
            if not needed.any():
                break
            count = int(np.where(needed, bounds, np.inf).argmin())
            relaxed, done[count] = relax(part, count), True
            bounds = np.maximum(bounds, bounds_by_attentions(part, relaxed.prices))
            bounds[count] = max(bounds[count], relaxed.bound)
            _try_dense(search, part, relaxed.choices[-LAST_MET:])
        least = min(least, float(bounds.min()))
    search.bound = max(search.bound, min(least, search.cost))


def _try_dense(search: _Search, problem: PlacementProblem, choices: Sequence[Choice]) -> None:
    """The best rows beside the dense parts of some choices."""
    for dense in {(c.embeddings, c.attention, c.head): c for c in choices}.values():
        found = [c for c in relax(problem.with_dense(dense)).choices if problem.allows(c)]
        if found:
            search.offer(improve(search.problem, min(found, key=problem.cost)), "greedy")


def _ask(search: _Search, solver: SolverName | None, time_limit: float, gap: float) -> bool:
    """Let the first solver that comes to an end improve the search; returns whether its time ran out."""
    available = solvers.available_solvers()
    if solver is not None and solver not in available:
        raise UserError(f"the solver {solver} is not installed; there are: {', '.join((*available, 'greedy'))}")
    enough = search.bound / (1 - gap) if math.isfinite(search.bound) and solver is None else -math.inf
    for candidate in available:
        if solver not in (None, candidate):
            continue
        try:
            outcome = solvers.run_solver(search.problem, candidate, time_limit, gap, search.best, enough)
        except Exception as error:
            # Whatever a solver dies of, there is another way to a placement: no plan may end without one.
            search.warnings.append(f"the solver {candidate} failed ({str(error) or type(error).__name__})")
            continue
        return _take(search, candidate, outcome, time_limit)
    missing = "" if available else ", as none is installed; install one with: pip install highspy"
    search.warnings.append(f"no solver answered: the placement is greedy's{missing}")
    return False


def _take(search: _Search, name: SolverName, outcome: Outcome, time_limit: float) -> bool:
    """Hold a solver's answer against the best; returns whether its time ran out."""
    if outcome.bound is not None:
        search.bound = max(search.bound, outcome.bound)
    before = search.cost
    if outcome.choice is not None and search.problem.allows(outcome.choice):
        search.offer(improve(search.problem, outcome.choice), name)
        if outcome.ended == "optimal" and search.problem.cost(outcome.choice) <= before:
            search.name = name  # it says the same, and proved it
    if outcome.ended == "time limit" and search.name != name:
        search.warnings.append(f"{name} found nothing better than greedy's placement in {time_limit:g} s")
    return outcome.ended == "time limit"
