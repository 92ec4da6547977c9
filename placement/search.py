"""The search that needs no solver: the relaxation's bound, and branching by where dense parts are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from placement.plan import SolverName
from placement.problem import Choice, PlacementProblem
from placement.relaxation import Relaxed, bounds_by_state, relax
from placement.steps import blend, improve, repair

LAST_MET = 2  # of the choices that a relaxation meets, those near its best prices
NEAR = 1.1  # times the bound: choices met that are worth improving
PROVED = 1e-9  # a gap within rounding of none


@dataclass
class Search:
    """The best so far: who found it, what no choice falls below, and what the user should know.

    gap: how much less another choice may cost, as a share, for the best to be good enough. deadline: of the branching,
    on the clock of `time.perf_counter`.
    """

    problem: PlacementProblem
    gap: float
    deadline: float
    best: Choice | None = None
    name: SolverName = "greedy"
    bound: float = -math.inf
    warnings: list[str] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """What the best costs; infinite without one."""
        return math.inf if self.best is None else self.problem.cost(self.best)

    @property
    def reached(self) -> float | None:
        """How much less another choice can cost at most, as a share of the best's cost; None without a best."""
        if self.best is None:
            return None
        return 0.0 if self.cost <= self.bound else (self.cost - self.bound) / self.cost

    @property
    def proved(self) -> bool:
        """Whether nothing costs less by more than the gap."""
        return self.reached is not None and self.reached <= max(self.gap, PROVED)

    def offer(self, choice: Choice, name: SolverName) -> None:
        """Take a choice if it is allowed and costs less."""
        if self.problem.allows(choice) and self.problem.cost(choice) < self.cost:
            self.best, self.name = choice, name

    def begin(self) -> None:
        """The relaxation's bound, choices that start from what it met, and branching where these are not enough."""
        relaxed = relax(self.problem)
        self.bound = relaxed.bound
        if not math.isfinite(self.bound):
            return
        self._polish(self.problem, relaxed, mend=False)
        if not self.proved:
            self._branch()
        if self.best is None:
            self._polish(self.problem, relaxed, mend=True)

    def _branch(self) -> None:
        """Bound choices by where embeddings and head are and how many attentions are on the GPU, and try the best.

        Dense parts are large: the relaxation fits a share of one, no placement does. With their number given, only rows
        are left to divide, and bound and placement nearly meet. Prices that are best for one number bound all the
        others too, so that most are passed over.
        """
        problem, least = self.problem, math.inf
        for embeddings, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if problem.tied and embeddings != head:
                continue
            part = problem.with_ends(embeddings, head)
            bounds = bounds_by_state(part, relax(part, close=self.gap / 4).prices)
            done = np.zeros(len(bounds), dtype=bool)
            while True:
                needed = ~done & (bounds < self.cost * (1 - self.gap))
                if not needed.any() or time.perf_counter() > self.deadline:
                    break
                state = int(np.where(needed, bounds, np.inf).argmin())
                relaxed, done[state] = relax(part, state, self.gap / 4), True
                bounds = np.maximum(bounds, bounds_by_state(part, relaxed.prices))
                bounds[state] = max(bounds[state], relaxed.bound)
                if math.isfinite(relaxed.bound):
                    self._try_dense(part, relaxed.choices[-LAST_MET:])
            least = min(least, float(bounds.min()))
        self.bound = max(self.bound, min(least, self.cost))

    def _try_dense(self, problem: PlacementProblem, choices: Sequence[Choice]) -> None:
        """The best rows beside the dense parts of some choices."""
        for dense in {(c.embeddings, c.attention, c.head): c for c in choices}.values():
            held = problem.with_dense(dense)
            relaxed = relax(held)
            if math.isfinite(relaxed.bound):
                self._polish(held, relaxed, mend=True)

    def _polish(self, problem: PlacementProblem, relaxed: Relaxed, *, mend: bool) -> None:
        """Offer the cheapest of the choices met that fit, after all steps that help; also the last ones, made to fit.

        Those that cost far more than the bound take thousands of steps and end no better than others.
        """
        near = NEAR * relaxed.bound
        found = [choice for choice in relaxed.choices if problem.allows(choice) and problem.cost(choice) <= near]
        if mend:
            mended = (*relaxed.choices[-LAST_MET:], blend(problem, relaxed.mixture))
            found += [repair(problem, choice) for choice in mended]
        found = [choice for choice in found if problem.allows(choice)]
        if found:
            better = improve(problem, min(found, key=problem.cost))
            self.offer(improve(self.problem, better), "greedy")  # where dense parts may move, too
