"""A layer's low-rank predictor where it runs: rows in the order of the layer file, weights on the layer's unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

LinearOperator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class RowPredictor:
    """`relu(x fc1ᵀ) fc2ᵀ > threshold`, a bool per row (Deja Vu, section 4.1; PowerInfer, section 5.1).

    fc1: 16 bit `[rank, hidden]`; fc2: 16 bit `[rows, rank]`, in row order; linear: the unit's operator.
    """

    fc1: torch.Tensor
    fc2: torch.Tensor
    threshold: float
    linear: LinearOperator

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, rows]`: the rows that each token's own state names, whatever else is in the batch."""
        return self.linear(self.linear(x, self.fc1, None).relu_(), self.fc2, None) > self.threshold
