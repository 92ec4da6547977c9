"""A layer's predictor where it runs: weights on a unit and in the order of neuron ids, answers in the order of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from profiler.matrix import Matrix
from profiler.predictor import Predictor

LinearOperator = Callable[[torch.Tensor, Matrix, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class RowPredictor:
    """Names rows as `profiler.predictor.Predictor` names neurons.

    predictor: its matrices and bias lie on the unit; neuron_ids: int32 `[rows]`, the neuron of each row, there too;
    linear: the unit's operator.
    """

    predictor: Predictor
    neuron_ids: torch.Tensor
    linear: LinearOperator

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, rows]`: the rows that each token's own state names, whatever else is in the batch."""
        p = self.predictor
        if p.fc2 is None:
            return p.named(x)
        if p.fc1 is not None:
            x = self.linear(x, p.fc1, None)
            x = x.relu_() if p.family == "perceptron" else x
        by_neuron = self.linear(x, p.fc2, p.bias) > p.threshold
        return by_neuron[:, self.neuron_ids]
