"""A profile from two published figures: how active a layer is, and how few of its neurons carry most of that.

Papers tell of a layer's sparsity and of the share of neurons that 80 % of its activations come from (PowerInfer, Song
et al., 2024, figure 5). A power law of the rank, cut at a greatest frequency, has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from placement.frequencies import Frequencies, Shares
from profiler.artifacts import UserError

CARRIED = 0.8  # share of activations by which skew is told
LARGEST = 0.95  # no neuron fires more often


def firing_shares(neurons: int, active: float, hot_share: float) -> Shares:
    """float64 `[neurons]`, falling: a power law of the rank, cut at 0.95, of mean `active`, whose first `hot_share` of
    neurons carry 80 % of all activations.

    Raises:
        UserError: no power law does both.
    """
    if not 0 < active < LARGEST or not 0 < hot_share < CARRIED:
        raise UserError(
            f"a layer of which {active:.0%} are active and {hot_share:.0%} are hot cannot be made up: give a share of "
            f"active neurons below {LARGEST:.0%} and one of hot neurons below {CARRIED:.0%}"
        )
    ranks = np.arange(1, neurons + 1, dtype=np.float64) / neurons
    # The steeper the law, the more its first neurons carry.
    exponent = solve(lambda e: carried(_scaled(ranks**-e, active), hot_share), CARRIED, 1e-3, 20)
    shares = _scaled(ranks**-exponent, active)
    if abs(carried(shares, hot_share) - CARRIED) > max(0.01, 2 / neurons):
        raise UserError(
            f"with {active:.0%} of the neurons firing, {hot_share:.0%} of them cannot carry {CARRIED:.0%} of the "
            "activations; give another share of hot neurons, or another sparsity"
        )
    return shares


def skewed_frequencies(layers: int, shares: Shares, named_over_active: float = 1.0) -> Frequencies:
    """Every layer with the same shares `[rows]`, hottest first; predictors name so many times the rows that are active.

    Tokens of a window are taken as independent: 1 - (1 - f)^B. No paper gives measured unions, and neighbours in a text
    have more in common than that.
    """
    active = np.tile(shares, (layers, 1))
    return Frequencies(
        active=active,
        named=np.minimum(1.0, active * named_over_active),
        union4=1 - (1 - active) ** 4,
        union16=1 - (1 - active) ** 16,
        has_predictors=True,
    )


def carried(shares: Shares, hot_share: float) -> float:
    """Share of all activations that the first `hot_share` of the neurons have."""
    first = max(1, round(hot_share * len(shares)))
    return float(shares[:first].sum() / shares.sum())


def solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a function that rises from `low` to `high` (both positive) takes a value; bisection on a log scale."""
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return math.sqrt(low * high)


def _scaled(law: Shares, mean: float) -> Shares:
    """A falling law times what gives it the mean once it is cut at the largest frequency."""
    # With the first k cut, the rest share what is left; the first k that leaves no other above the cut is right.
    rest = np.cumsum(law[::-1])[::-1]
    scales = (mean * len(law) - LARGEST * np.arange(len(law))) / rest
    scale = scales[np.argmax(scales * law <= LARGEST)]
    return np.asarray(np.minimum(scale * law, LARGEST))
