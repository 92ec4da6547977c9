"""What a mode costs in quality, as figures: of the whole text, of a layer, and how sure a ratio is. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiler.artifacts import UserError

LARGEST_WHOLE = 1 << 60  # beyond it a number from a file cannot be counted with as a float


@dataclass(frozen=True)
class LayerQuality:
    """What was named in one layer, against what was active, over `tokens` tokens.

    All are shares from 0 to 1. active, named: share of the neurons, averaged over tokens. recall: share of the active
    ones that were named. precision: share of the named ones that were active. mass_recall: share of a token's summed
    |activation| that the named ones carry, averaged over tokens. dropped_mass: share of the summed |activation| of all
    tokens together that was not named, so that a token counts by its mass. A share of nothing is 1, a dropped one 0:
    nothing was missed, nothing named in vain.
    """

    tokens: int
    active: float
    named: float
    recall: float
    precision: float
    mass_recall: float
    dropped_mass: float

    def __post_init__(self) -> None:
        _check_count(self.tokens, "tokens of a layer")
        for name in ("active", "named", "recall", "precision", "mass_recall", "dropped_mass"):
            _check_between(getattr(self, name), 0, 1, name)


@dataclass(frozen=True)
class Interval:
    """An interval that holds the true figure with a confidence of `level`, from `documents` drawn `resamples` times."""

    low: float
    high: float
    level: float
    documents: int
    resamples: int

    def __post_init__(self) -> None:
        _check_between(self.low, 0, math.inf, "the lower end of an interval")
        _check_between(self.high, self.low, math.inf, "the upper end of an interval")
        _check_between(self.level, 0, 1, "a confidence")
        _check_count(self.documents, "documents")
        _check_count(self.resamples, "resamples")


@dataclass(frozen=True)
class Quality:
    """One mode on a text, over all predicted tokens.

    perplexity: exp of the mean loss. ratio: it over the reference's. interval: of the ratio, over documents; None where
    there are too few of them. agreement: share of tokens whose most likely next token is the reference's. divergence:
    mean KL divergence from the reference, in nats per token; the others are its percentiles over tokens.
    """

    tokens: int
    perplexity: float
    ratio: float
    interval: Interval | None
    agreement: float
    divergence: float
    divergence_p50: float
    divergence_p95: float
    divergence_p99: float

    def __post_init__(self) -> None:
        _check_count(self.tokens, "tokens of a text")
        _check_between(self.agreement, 0, 1, "agreement")
        for name in ("perplexity", "ratio", "divergence", "divergence_p50", "divergence_p95", "divergence_p99"):
            _check_between(getattr(self, name), 0, math.inf, name)


def _check_between(value: object, low: float, high: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"quality: {name} is {value!r}, and should lie between {low:g} and {high:g}")
    if isinstance(value, int) and value > LARGEST_WHOLE:
        raise UserError(f"quality: {name} is larger than anything that is measured")


def _check_count(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"quality: the number of {name} is {value!r}, and should be at least 1")
