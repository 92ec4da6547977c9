"""Predictors: for every layer, which neurons a token will activate, told from a state that is known beforehand.

What a predictor computes, for all families; `predictor_outline` says what it is and checks that its parts fit,
`predictor_file` keeps predictors, `training` and `training_free` make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from profiler.artifacts import UserError
from profiler.formats import BLOCK
from profiler.matrix import SIXTEEN_BIT, Matrix
from profiler.predictor_outline import EVERYTHING, NOTHING, PredictorOutline, PredictorSetOutline

QUANTISED = "q8_0"


@dataclass(frozen=True, eq=False)
class Predictor(PredictorOutline[Matrix, torch.Tensor]):
    """One layer's, with its weights; see `PredictorOutline` for what it consists of."""

    @staticmethod
    def low_rank(fc1: Matrix, fc2: Matrix, threshold: float, **rest: Any) -> Predictor:
        """Of two matrices: the trained perceptron, or with `family="factors"` a product."""
        rest = {"family": "perceptron", **rest}
        return Predictor(hidden=fc1.columns, neurons=fc2.rows, fc1=fc1, fc2=fc2, threshold=threshold, **rest)

    @staticmethod
    def gates(matrix: Matrix, threshold: float, **rest: Any) -> Predictor:
        """The gate matrix `[neurons, hidden]` in few bits."""
        return Predictor("gates", matrix.columns, matrix.rows, None, matrix, threshold, **rest)

    @staticmethod
    def none(hidden: int, neurons: int, threshold: float = EVERYTHING) -> Predictor:
        """No predictor: every neuron is named, or with a threshold of `NOTHING` none is."""
        return Predictor("none", hidden, neurons, None, None, threshold)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, neurons]` of states `[tokens, hidden]`: weights widened, sums in fp32.

        Raises:
            ValueError: of the family `none`, which has no logits of its own.
        """
        if self.fc2 is None:
            raise ValueError("a predictor without weights has no logits")
        every, x = slice(None), x.float()
        if self.fc1 is not None:
            x = x @ self.fc1.widened(every).T
            x = x.relu() if self.family == "perceptron" else x
        y = x @ self.fc2.widened(every).T
        return y if self.bias is None else y + self.bias

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, neurons]`: the neurons that each token's own state names."""
        if self.fc2 is None:
            return torch.full((len(x), self.neurons), self.threshold < 0, device=x.device)
        return self.logits(x) > self.threshold

    def quantised(self, weight_format: str = QUANTISED) -> Predictor:
        """The same predictor, its 16-bit matrices in a format of blocks; those that are not whole blocks stay.

        Raises:
            UserError: a weight is too large for the format.
        """

        def rounded(matrix: Matrix) -> Matrix:
            if matrix.weight_format not in SIXTEEN_BIT or matrix.columns % BLOCK:
                return matrix
            return Matrix.quantised(matrix.widened(slice(None)), weight_format)

        return self.moved(rounded, lambda bias: bias)

    def moved(self, move: Callable[[Matrix], Matrix], move_vector: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
        """The same predictor with each matrix, and its bias, replaced by what the functions make of it."""
        fc1, fc2 = (None if matrix is None else move(matrix) for matrix in (self.fc1, self.fc2))
        return replace(self, fc1=fc1, fc2=fc2, bias=None if self.bias is None else move_vector(self.bias))

    def check_finite(self) -> None:
        """Read all weights.

        Raises:
            UserError: one is NaN or infinite.
        """
        finite = all(matrix.is_finite() for matrix in self.matrices)
        if not finite or (self.bias is not None and not bool(torch.isfinite(self.bias).all())):
            raise UserError("a predictor holds values that are not numbers")


@dataclass(frozen=True, eq=False)
class PredictorSet(PredictorSetOutline[Predictor]):
    """The predictors of all layers with their weights; see `PredictorSetOutline`.

    path: the file whose mapped pages the matrices are views of; None where they lie in memory of their own.
    """

    path: Path | None = None

    def with_thresholds(self, thresholds: Iterable[float]) -> PredictorSet:
        """The same predictors at other thresholds. What was measured of them no longer holds, and is kept."""
        pairs = zip(self.layers, thresholds, strict=True)
        return replace(self, layers=tuple(replace(p, threshold=t) for p, t in pairs))

    def silenced(self) -> PredictorSet:
        """The same predictors naming nothing: what the model is without them must then be lost."""
        return self.with_thresholds([NOTHING] * len(self.layers))

    def quantised(self) -> PredictorSet:
        """The same predictors in q8_0; see `Predictor.quantised`."""
        return replace(self, layers=tuple(p.quantised() for p in self.layers), path=None)

    def mappings(self) -> list[tuple[int, int, str]]:
        """(address, length, path) of each matrix that lies in a mapped file."""
        if self.path is None:
            return []
        matrices = [matrix for p in self.layers for matrix in p.matrices]
        return [(m.data.data_ptr(), m.nbytes, str(self.path)) for m in matrices]
