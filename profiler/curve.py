"""`Curve`: how many scores, and how much of what they stand for, lie above each threshold; a stream in fixed memory.

Scores are sorted into bins, each open below and closed above, whose edges are the thresholds on offer. So what a curve
says of an edge is exact: a score is kept where it is greater than the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from profiler.artifacts import UserError

Floats = npt.NDArray[np.float64]
MOST_BINS = 1 << 20
INFINITY_BITS = 0x7F800000  # of an fp32 number
FRACTION_BITS = 23


class Bins(Protocol):
    """A way to sort scores; bin k holds those above edge k - 1 up to edge k."""

    @property
    def edges(self) -> Floats:
        """fp64 `[bins]`, ascending: the upper edge of each bin, which fp32 holds; the last is infinite."""
        ...

    def index(self, scores: torch.Tensor) -> torch.Tensor:
        """Whole numbers of the shape of fp32 `scores`: the bin of each; beyond the last for NaN."""
        ...


@dataclass(frozen=True)
class LogBins:
    """`2 ** bits` bins to each doubling, over the whole range of fp32 numbers from 0 on; zeros have a bin of their own.

    A positive float's bits, read as a whole number, rise with its value: their upper part is the bin.
    """

    bits: int = 7

    def __post_init__(self) -> None:
        assert 0 <= self.bits <= 12, "at most 2 ** 20 bins"

    @property
    def _shift(self) -> int:
        return FRACTION_BITS - self.bits

    @property
    def edges(self) -> Floats:
        """See `Bins`; the first is 0."""
        places = np.arange((INFINITY_BITS >> self._shift) + 1, dtype=np.int32) << self._shift
        return places.view(np.float32).astype(np.float64)

    def index(self, scores: torch.Tensor) -> torch.Tensor:
        """See `Bins`; scores are not negative."""
        return ((scores.contiguous().view(torch.int32) - 1) >> self._shift) + 1


@dataclass(frozen=True)
class LinearBins:
    """Bins of one width from `low` to `high`, one below and one above; both are multiples of the width, a power of two.

    So a score's bin is found without rounding.
    """

    low: float
    high: float
    width: float

    def __post_init__(self) -> None:
        assert self.width > 0 and frexp(self.width)[0] == 0.5, "a width is a power of two"
        assert self.low % self.width == 0 == self.high % self.width, "multiples of the width"
        assert 0 < (self.high - self.low) / self.width < MOST_BINS, "at most 2 ** 20 bins"

    @property
    def edges(self) -> Floats:
        """See `Bins`; the first is `low`."""
        inner = np.arange(round((self.high - self.low) / self.width) + 1) * self.width + self.low
        return np.append(inner, np.inf)

    def index(self, scores: torch.Tensor) -> torch.Tensor:
        """See `Bins`."""
        last = round((self.high - self.low) / self.width) + 1
        places = (scores / self.width).ceil_().sub_(self.low / self.width).clamp_(0, last)
        return places.nan_to_num_(nan=last + 1).int()


@dataclass(frozen=True)
class Kept:
    """What lies above a threshold: share of the scores, and share of their mass (1 where there is none)."""

    share: float
    mass: float


class Curve:
    """Counts and mass of scores by bin, over all that was added.

    Args:
        bins: the thresholds on offer.

    """

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.edges = bins.edges
        self.counts = np.zeros(len(self.edges), dtype=np.int64)
        self.mass = np.zeros(len(self.edges))

    @property
    def total(self) -> int:
        """Scores so far."""
        return int(self.counts.sum())

    def add(self, scores: torch.Tensor, mass: torch.Tensor) -> None:
        """Count scores, fp32 of any shape, each with what it stands for, fp32 of the same shape and not negative.

        Raises:
            UserError: a score is NaN, or mass is not finite.
        """
        places, size = self.bins.index(scores).flatten(), len(self.edges)
        counts = torch.bincount(places, minlength=size)
        sums = torch.bincount(places, mass.flatten().double(), minlength=size)
        if len(counts) > size or not bool(sums.isfinite().all()):
            raise UserError(
                "the model computed values that are not finite numbers: the checkpoint is damaged, or its activations "
                "are beyond the range of its format"
            )
        self.counts += counts.cpu().numpy()
        self.mass += sums.cpu().numpy()

    def shares(self) -> tuple[Floats, Floats]:
        """fp64 `[bins]` twice: of scores and of mass, the share above each of `edges`. Both fall.

        Raises:
            UserError: nothing was added.
        """
        if not self.total:
            raise UserError("the text is too short to calibrate on: no activation was seen")
        above = self.total - self.counts.cumsum()
        mass = self.mass.sum()
        kept = np.maximum(mass - self.mass.cumsum(), 0) / mass if mass else np.ones(len(above))
        return above / self.total, kept

    def kept(self, threshold: float) -> Kept:
        """What lies above a threshold; one between two edges counts as the upper one. Raises as `shares`."""
        place = int(np.searchsorted(self.edges, threshold))
        shares, mass = self.shares()
        return Kept(float(shares[place]), float(mass[place]))

    def threshold_for_share(self, share: float) -> float:
        """The lowest edge above which at most this share of the scores lies. Raises as `shares`."""
        shares, _ = self.shares()
        return float(self.edges[np.flatnonzero(shares <= share + 1e-12)[0]])

    def threshold_for_mass(self, share: float) -> float:
        """The highest edge above which at least this share of the mass lies; the lowest of all where there is none.

        Raises as `shares`.
        """
        _, mass = self.shares()
        enough = np.flatnonzero(mass >= share - 1e-12)
        return float(self.edges[enough[-1] if len(enough) else 0])


def cutoffs_for(curves: Sequence[Curve], share: float) -> tuple[float, ...]:
    """For each layer the activation cutoff that leaves this share of its activations inactive (CATS, section 4.1).

    Raises:
        UserError: nothing was added to a curve.
    """
    return tuple(curve.threshold_for_share(1 - share) for curve in curves)
