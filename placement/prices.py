"""The prices of memory that the choices met so far allow, by the simplex method: a linear program of three rows.

It mixes choices so that on average they keep the budgets, at the least cost (Dantzig and Wolfe, 1960); the prices are
its dual values. Written out, as scipy's solver takes longer to load than a plan takes to make, and 3 ms a call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
MOST_PIVOTS = 1000
SMALLEST = 1e-12  # a reduced cost or a pivot that is nothing, where columns are near 1
NUDGE = 1e-13  # of the right hand side, so that no two ways out of the basis are equal


class Mixture:
    """The cheapest mixture of choices that keeps budgets on average.

    Costs and excesses `[budgets]` should be near 1. highest: what it may cost to break the budgets; no mixture that
    keeps them should cost as much.
    """

    def __init__(self, budgets: int, highest: float) -> None:
        # One column for each budget's slack, and one that stands for breaking them.
        self._columns = np.eye(budgets + 1)
        self._costs = np.append(np.zeros(budgets), highest)
        self._basis = list(range(budgets + 1))
        self._right = np.append(NUDGE * np.arange(1, budgets + 1), 1.0)

    def add(self, cost: float, excess: Numbers) -> None:
        """Let a choice take part: what it costs, and by how much it exceeds each budget."""
        self._columns = np.column_stack((self._columns, np.append(excess, 1.0)))
        self._costs = np.append(self._costs, cost)

    def prices(self) -> tuple[Numbers, float]:
        """Prices `[budgets]` of a unit of each budget, none negative, and what the mixture costs."""
        for _ in range(MOST_PIVOTS):
            square = self._columns[:, self._basis]
            dual = np.linalg.solve(square.T, self._costs[self._basis])
            reduced = self._costs - dual @ self._columns
            enters = int(reduced.argmin())
            if reduced[enters] >= -SMALLEST:
                break
            sides = np.column_stack((self._columns[:, enters], self._right))
            step, level = np.linalg.solve(square, sides).T
            ratios = np.divide(level, step, out=np.full_like(level, np.inf), where=step > SMALLEST)
            self._basis[int(ratios.argmin())] = enters
        return np.maximum(-dual[:-1], 0.0), float(dual[-1])

    def shares(self) -> dict[int, float]:
        """Which choices, in the order they were added, the mixture of the last prices consists of, and their shares."""
        level = np.linalg.solve(self._columns[:, self._basis], self._right)
        first = len(self._right)  # the columns before are no choices
        return {i - first: float(share) for i, share in zip(self._basis, level, strict=True) if i >= first}
