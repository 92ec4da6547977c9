"""A search for the cheapest thresholds whose perplexity stays within a budget.

One pass tells, layer by layer, how many neurons lie above each threshold and how much of the activations they carry.
One price per neuron, in shares of a layer's mass, then decides all thresholds: each layer takes the one at which mass
less price times neurons is greatest, so that no layer pays for a neuron that would carry more in another. The price is
found by bisection, each step a run of the text through the engine that decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hybrid.stages.quality import Measured, Part, Passage, predicted_tokens, sums
from profiler.artifacts import UserError
from profiler.bootstrap import ratio, ratio_interval
from profiler.curve import Curve
from profiler.quality import Interval

LOWEST_PRICE, HIGHEST_PRICE = -10.0, 7.0  # of one neuron in 1, in shares of mass, as powers of two
STEPS = 7  # of bisection: the price is then known to a tenth
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """Thresholds that were tried, by a setting of the knob.

    ratio and interval: of perplexity over dense. shares and masses: by layer, of the neurons above the threshold, and
    of the activations that they carry.
    """

    knob: float
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    masses: tuple[float, ...]
    ratio: float
    interval: Interval | None

    @property
    def upper(self) -> float:
        """The ratio that is held against a budget: the upper end of the interval, where there is one."""
        return self.ratio if self.interval is None else self.interval.high

    @property
    def share(self) -> float:
        """Of the neurons of all layers."""
        return sum(self.shares) / len(self.shares)


@dataclass(frozen=True)
class BudgetSearch:
    """The setting found, and all that were tried, the most careful first."""

    budget: float
    found: Setting
    tried: tuple[Setting, ...]


def at_price(curves: Sequence[Curve | None], price: float, least_mass: float) -> list[float]:
    """For each layer the threshold at which mass less price times share is greatest, of those that keep enough mass.

    A layer without a curve keeps everything.
    """
    found = []
    for curve in curves:
        if curve is None:
            found.append(-math.inf)
            continue
        shares, masses = curve.shares()
        worth = np.where(masses >= least_mass, masses - price * shares, -np.inf)
        best = int(len(worth) - 1 - worth[::-1].argmax())  # of equals the highest threshold
        found.append(float(curve.edges[best]) if np.isfinite(worth[best]) else -math.inf)
    return found


def at_share(curves: Sequence[Curve | None], inactive: float) -> list[float]:
    """For each layer the threshold below which this share of its neurons lies, the same in all (CATS)."""
    return [-math.inf if curve is None else curve.threshold_for_share(1 - inactive) for curve in curves]


@dataclass(frozen=True)
class Knob:
    """One number that decides all thresholds, from `low`, which costs least perplexity, to `high`."""

    choose: Callable[[float], Sequence[float]]
    low: float
    high: float


def price_knob(curves: Sequence[Curve | None], least_mass: float = 0.0) -> Knob:
    """The logarithm of the price of a neuron."""
    return Knob(lambda exponent: at_price(curves, 2.0**exponent, least_mass), LOWEST_PRICE, HIGHEST_PRICE)


def share_knob(curves: Sequence[Curve | None]) -> Knob:
    """The share of inactive neurons."""
    return Knob(lambda share: at_share(curves, share), 0.0, 0.99)


@dataclass(frozen=True)
class Trier:
    """Runs a text with thresholds and holds it against dense.

    curves: per layer, of the scores that thresholds cut. measure: runs the text. reference: dense on the same text,
    `passages`, of which `parts` are what the interval draws.
    """

    curves: Sequence[Curve | None]
    measure: Callable[[Sequence[float]], Measured]
    reference: Measured
    passages: Sequence[Passage]
    parts: Sequence[Part]

    def setting(self, knob: float, thresholds: Sequence[float]) -> Setting:
        """What thresholds cost and keep."""
        kept = [None if c is None else c.kept(t) for c, t in zip(self.curves, thresholds, strict=True)]
        measured, tokens = self.measure(thresholds), predicted_tokens(self.passages)
        gaps = measured.losses - self.reference.losses
        ours, theirs, weights = (sums(v, self.parts) for v in (measured.losses, self.reference.losses, tokens))
        return Setting(
            knob=knob,
            thresholds=tuple(thresholds),
            shares=tuple(1.0 if k is None else k.share for k in kept),
            masses=tuple(1.0 if k is None else k.mass for k in kept),
            ratio=float(ratio(gaps, tokens.astype(np.float64))),
            interval=ratio_interval(ours, theirs, weights),
        )


def search(trier: Trier, knob: Knob, budget: float, tell: Progress = lambda stage, done, total: None) -> BudgetSearch:
    """The furthest setting of the knob whose perplexity stays within the budget.

    budget: perplexity over dense, less 1: 0.001 for a tenth of a percent. Where there is an interval, its upper end has
    to stay below it.

    Raises:
        UserError: even the lowest setting costs more.
    """
    tried: list[Setting] = []

    def attempt(value: float) -> Setting:
        tried.append(trier.setting(value, knob.choose(value)))
        tell("searching", len(tried), STEPS + 2)
        return tried[-1]

    low, high = knob.low, knob.high
    found = attempt(low)
    if found.upper > 1 + budget:
        raise UserError(
            f"no thresholds keep within {budget:.3%} of perplexity: the most careful ones already cost "
            f"{found.upper - 1:.3%} (upper end of the interval); allow a larger --budget, calibrate on a longer text, "
            "or train larger predictors"
        )
    furthest = attempt(high)
    if furthest.upper <= 1 + budget:
        found = furthest
    else:
        for _ in range(STEPS):
            middle = (low + high) / 2
            candidate = attempt(middle)
            if candidate.upper <= 1 + budget:
                low, found = middle, candidate
            else:
                high = middle
    return BudgetSearch(budget, found, tuple(sorted(tried, key=lambda s: s.knob)))
