"""Taps that ask predictors: curves of their logits, thresholds, and their quality, from a stream in fixed memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite, log2
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from profiler.artifacts import UserError
from profiler.coverage import Coverage
from profiler.curve import Curve, LinearBins
from profiler.predictor import Predictor
from profiler.predictor_outline import EVERYTHING
from profiler.training import per_token

See = Callable[[int, torch.Tensor, torch.Tensor], None]
BINS = 4096


class LogitTap:
    """A `profiler.tap.ResidualTap` that hands each layer's logits on with the activations that they are to tell.

    Args:
        predictors: of all layers; a layer whose predictor has no logits is left out.
        row_to_id: per layer the neuron id of every row.
        see: told the next tokens of a layer: logits and |activation|, fp32 `[tokens, neurons]` by neuron id.

    """

    def __init__(
        self, predictors: Sequence[Predictor], row_to_id: Sequence[npt.NDArray[np.integer[Any]]], see: See
    ) -> None:
        self.predictors, self._see = predictors, see
        self._orders = [torch.from_numpy(np.argsort(ids)) for ids in row_to_id]
        self._read: dict[str, torch.Tensor] = {}

    def document(self) -> None:
        """Nothing: every token counts by itself."""

    def residual(self, layer: int, states: torch.Tensor) -> None:
        """See `profiler.tap.ResidualTap`."""
        self._read["residual"] = states

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """See `profiler.tap.Tap`."""
        predictor = self.predictors[layer]
        self._read["ffn_input"] = hidden
        if predictor.fc2 is not None:
            logits = predictor.logits(self._read[predictor.reads].to(predictor.fc2.device))
            self._see(layer, logits.cpu(), activation.abs().cpu()[:, self._orders[layer]])
        self._read["previous_ffn_input"] = hidden


class LogitCurves(LogitTap):
    """A tap that sorts each layer's logits into a curve, with shares of a token's summed |activation| as mass.

    Args: as `LogitTap`.
    """

    def __init__(self, predictors: Sequence[Predictor], row_to_id: Sequence[npt.NDArray[np.integer[Any]]]) -> None:
        super().__init__(predictors, row_to_id, self._add)
        self._curves: dict[int, Curve] = {}

    @property
    def curves(self) -> list[Curve | None]:
        """Of each layer; None where nothing predicts, so that there is no threshold to choose."""
        return [self._curves.get(layer) for layer in range(len(self.predictors))]

    def thresholds(self, keep: float) -> list[float]:
        """Of each layer, the highest one on offer at which the named neurons carry `keep` of a token's mass on average.

        All neurons are named where no other one keeps so much, or where nothing predicts.

        Raises:
            UserError: there was no token.
        """
        found = []
        for curve in self.curves:
            threshold = EVERYTHING if curve is None else curve.threshold_for_mass(keep)
            found.append(threshold if curve and curve.kept(threshold).mass >= keep else EVERYTHING)
        return found

    def _add(self, layer: int, logits: torch.Tensor, magnitude: torch.Tensor) -> None:
        if layer not in self._curves:
            self._curves[layer] = Curve(bins_for(logits))
        self._curves[layer].add(logits, per_token(magnitude))


class NamedCounts(Coverage):
    """Coverage that also counts the tokens that name each neuron, in the order shown: int64 `[layers, neurons]`."""

    def __init__(self, layers: int, rows: int) -> None:
        super().__init__(layers)
        self.tokens = 0
        self.counts = np.zeros((layers, rows), dtype=np.int64)

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """See `profiler.tap.Tap`."""
        super().ffn(layer, hidden, activation, named)
        self.tokens += len(hidden) if layer == 0 else 0
        self.counts[layer] += len(hidden) if named is None else named.sum(0).cpu().numpy()


def bins_for(logits: torch.Tensor) -> LinearBins:
    """Bins for logits like these, about `BINS` of them, and room on both sides.

    Raises:
        UserError: a logit is not a finite number.
    """
    low, high = float(logits.min()), float(logits.max())
    if not isfinite(high - low):
        raise UserError("a predictor computed logits that are not finite numbers: it or the checkpoint is damaged")
    spread = max(high - low, 1e-6)
    width = 2.0 ** ceil(log2(2 * spread / BINS))
    return LinearBins(floor((low - spread / 2) / width) * width, ceil((high + spread / 2) / width) * width, width)
