"""`Tap`: what looks on while a text runs through a model. The decoder calls it; recorder and capture are its kinds."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch


class Tap(Protocol):
    """Sees the input and the activations of every feed-forward layer, token after token in the order of the text."""

    def document(self) -> None:
        """The tokens that follow belong to another document, or to a piece that does not see the one before it."""
        ...

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """One layer's part in the next tokens; neurons stand in the layer's row order.

        Args:
            layer: index of the layer.
            hidden: fp32 `[tokens, hidden]`, the normalised state that the FFN and its predictor read.
            activation: fp32 `[tokens, rows]`, what multiplies the down vectors (`act(gate) · up`, or `act(up)`); a
                neuron is active where it is not zero.
            named: bool `[tokens, rows]`, what the layer's predictor says; None where there is none.

        """
        ...


@runtime_checkable
class ResidualTap(Tap, Protocol):
    """A tap that is also shown the state before the FFN's norm, which published predictors read."""

    def residual(self, layer: int, states: torch.Tensor) -> None:
        """Called before `ffn` with the same tokens: fp32 `[tokens, hidden]`; valid during the call."""
        ...


@runtime_checkable
class GateTap(Tap, Protocol):
    """A tap that is also shown what the activation function gave, which cutoffs are compared with."""

    def gate(self, layer: int, values: torch.Tensor) -> None:
        """Called before `ffn` with the same tokens: fp32 `[tokens, rows]`, `act(gate)`, or `act(up)` without a gate."""
        ...
