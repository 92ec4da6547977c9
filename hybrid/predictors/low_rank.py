"""A layer's low-rank predictor where it runs, weights on the layer's unit and in the order of neuron ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from profiler.matrix import Matrix

LinearOperator = Callable[[torch.Tensor, Matrix, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class RowPredictor:
    """`relu(x fc1ᵀ) fc2ᵀ > threshold`, a bool per row (Deja Vu, section 4.1; PowerInfer, section 5.1).

    fc1: `[rank, hidden]`; fc2: `[neurons, rank]`, both as they lie in their file; neuron_ids: int32 `[rows]`, the
    neuron of each row, on the unit; linear: the unit's operator.
    """

    fc1: Matrix
    fc2: Matrix
    threshold: float
    neuron_ids: torch.Tensor
    linear: LinearOperator

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, rows]`: the rows that each token's own state names, whatever else is in the batch."""
        by_neuron = self.linear(self.linear(x, self.fc1, None).relu_(), self.fc2, None) > self.threshold
        return by_neuron[:, self.neuron_ids]
