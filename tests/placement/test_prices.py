"""Prices of memory are the dual values of the cheapest mixture, as a library's linear program finds them."""

import numpy as np
import pytest
from scipy.optimize import linprog

from placement.prices import Mixture

HIGHEST = 4.0


@pytest.mark.parametrize("budgets", [1, 2])
def test_prices_and_cost_are_those_of_the_linear_program(budgets: int) -> None:
    random = np.random.default_rng(budgets)
    for _ in range(40):
        count = int(random.integers(1, 40))
        costs, excess = random.random(count), random.uniform(-1, 1, (count, budgets))
        if random.random() < 0.3:
            excess, costs = np.round(excess * 2) / 2, np.round(costs * 4) / 4  # ties
        mixture = Mixture(budgets, HIGHEST)
        for cost, over in zip(costs, excess, strict=True):
            mixture.add(cost, over)
            prices, _ = mixture.prices()
        # The greatest bound of all prices: v ≤ cost + prices · excess for every choice, and v ≤ highest.
        found = linprog(
            np.r_[np.zeros(budgets), -1],
            A_ub=np.hstack((-excess, np.ones((count, 1)))),
            b_ub=costs,
            bounds=[(0, None)] * budgets + [(None, HIGHEST)],
        )
        prices, value = mixture.prices()
        assert value == pytest.approx(-found.fun, abs=1e-9)
        assert prices.min() >= 0
        assert min(HIGHEST, float((costs + excess @ prices).min())) == pytest.approx(value, abs=1e-9)


def test_without_a_choice_that_fits_the_mixture_costs_all_there_is() -> None:
    mixture = Mixture(2, HIGHEST)
    assert mixture.prices()[1] == pytest.approx(HIGHEST)
    mixture.add(0.5, np.array([0.1, -0.2]))
    mixture.add(0.7, np.array([0.3, -0.5]))
    prices, value = mixture.prices()
    assert value == pytest.approx(HIGHEST)
    assert (np.array([0.5, 0.7]) + np.array([[0.1, -0.2], [0.3, -0.5]]) @ prices >= HIGHEST - 1e-9).all()
