"""Taps that ask predictors which read the state before the norm: their thresholds and their quality, from a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, isfinite, log2
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from profiler.artifacts import UserError
from profiler.coverage import Tally
from profiler.curve import Curve, LinearBins
from profiler.predictor import EVERYTHING, NOTHING, Predictor, PredictorQuality
from profiler.profile import Counts
from profiler.training import per_token, predictor_quality

See = Callable[[int, torch.Tensor, torch.Tensor], None]
HALF_BINS = 1 << 15  # of a curve of logits, on either side of 0
EXPECTED = HALF_BINS >> 1  # bins that the first logits reach; later ones may be twice as large


class ResidualLogits:
    """A `profiler.tap.ResidualTap` that hands each layer's logits on with the activations that they are to tell.

    Args:
        predictors: of all layers; each reads the residual.
        row_to_id: per layer the neuron id of every row.
        see: told the next tokens of a layer: logits and |activation|, fp32 `[tokens, neurons]` by neuron id.

    """

    def __init__(
        self, predictors: Sequence[Predictor], row_to_id: Sequence[npt.NDArray[np.integer[Any]]], see: See
    ) -> None:
        assert all(predictor.reads == "residual" for predictor in predictors), "what is read is the residual"
        self._predictors, self._see = predictors, see
        self._orders = [torch.from_numpy(np.argsort(ids)) for ids in row_to_id]
        self._states: torch.Tensor | None = None

    def document(self) -> None:
        """Nothing: every token counts by itself."""

    def residual(self, layer: int, states: torch.Tensor) -> None:
        """Remember the states until the activations come."""
        self._states = states

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """See `profiler.tap.Tap`."""
        assert self._states is not None, "the residual comes before the activations"
        logits = self._predictors[layer].logits(self._states.cpu())
        self._see(layer, logits, activation.abs().cpu()[:, self._orders[layer]])
        self._states = None


class MassCurves:
    """Finds the thresholds that keep a share of activation mass: a curve for each layer, about 1.5 MiB."""

    def __init__(self, layers: int) -> None:
        self._curves: list[Curve | None] = [None] * layers

    def add(self, layer: int, logits: torch.Tensor, magnitude: torch.Tensor) -> None:
        """Sort the active neurons' logits, each with its share of its token's |activation|; see `ResidualLogits`.

        Raises:
            UserError: a value is not a finite number.
        """
        curve = self._curves[layer] or Curve(bins_for(float(logits.abs().max())))
        active = magnitude != 0  # NaN included, which the curve refuses
        curve.add(logits[active], per_token(magnitude)[active])
        self._curves[layer] = curve

    def thresholds(self, keep: float) -> list[float]:
        """Of each layer, the highest one on offer at which the named neurons carry `keep` of a token's mass on average.

        `NOTHING` where no neuron was active; `EVERYTHING` where the share is reached by no other.
        """
        found = []
        for curve in self._curves:
            if curve is None or not curve.total:
                found.append(NOTHING)
                continue
            threshold = curve.threshold_for_mass(keep)
            found.append(threshold if curve.kept(threshold).mass >= keep else EVERYTHING)
        return found


class NamedTallies:
    """Measures predictors at their thresholds. named: int64 `[layers, neurons]`, tokens that name each neuron id."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._thresholds = [predictor.threshold for predictor in predictors]
        self._tallies = [Tally() for _ in predictors]
        self.named: Counts = np.zeros((len(predictors), predictors[0].neurons), dtype=np.int64)

    def add(self, layer: int, logits: torch.Tensor, magnitude: torch.Tensor) -> None:
        """Count the next tokens of a layer; see `ResidualLogits`."""
        named = logits > self._thresholds[layer]
        self._tallies[layer].add(magnitude, named)
        self.named[layer] += named.sum(0).numpy()

    def quality(self) -> tuple[PredictorQuality, ...]:
        """Of every layer.

        Raises:
            UserError: no token was seen, or activations are not finite numbers.
        """
        return tuple(map(predictor_quality, self._tallies))


def bins_for(greatest: float) -> LinearBins:
    """Bins for logits of which the first ones lie within `greatest` of 0.

    Raises:
        UserError: that is not a finite number.
    """
    if not isfinite(greatest):
        raise UserError("a predictor computed logits that are not finite numbers: its file is damaged")
    width = 2.0 ** max(-100, ceil(log2(max(greatest, 1e-30) / EXPECTED)))
    return LinearBins(-HALF_BINS * width, HALF_BINS * width, width)
