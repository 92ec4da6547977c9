"""What recorders of feed-forward networks share: which predictor names a layer's rows, when, and what comes after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.scheduler import Scheduler


class FeedForwards(ABC):
    """Records `Operators.feed_forward` as `Scheduler` computes it; where rows lie is for those who derive from it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._ahead: dict[int, Callable[[], torch.Tensor]] = {}  # by layer, gives what the layer before it names

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        layer = self.scheduler.layers[index]
        named = self._named(index, x, residual) if self.scheduler.mode == "predicted" else None
        y = self._on_both(index, x, named) if layer.far_banks else self._here(index, x, named)
        if layer.down_bias is not None:
            self._add_bias(y, layer.down_bias)
        return y

    def _named(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """As `Scheduler` names rows: by this layer's predictor, or by what was recorded with the layer before."""
        layer = self.scheduler.layers[index]
        assert layer.predictor is not None, "predicted mode has predictors"
        reads = layer.predictor.predictor.reads
        if reads == "previous_ffn_input":
            named = self._ahead.pop(index)()
        else:
            named = self._predicted(index, layer.predictor, x if reads == "ffn_input" else residual, "named")
        following = self.scheduler.ahead_of(index)
        if following is not None:  # two buffers in turn: this layer's own rows are still to be computed
            self._ahead[index + 1] = self._predicted_ahead(index + 1, following, x, f"named ahead {index % 2}")
        return named

    @abstractmethod
    def _predicted(self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        """bool `[tokens, rows]`: what the predictor of layer `index` names, where the layer's attention is."""

    @abstractmethod
    def _predicted_ahead(
        self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str
    ) -> Callable[[], torch.Tensor]:
        """The same of a layer that is still to come: what gives it once that layer is recorded."""

    @abstractmethod
    def _here(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        """The rows of a layer that all lie beside its attention."""

    @abstractmethod
    def _on_both(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        """As `Scheduler.on_both`: rows elsewhere are computed there while those here are computed."""

    @abstractmethod
    def _add_bias(self, y: torch.Tensor, bias: torch.Tensor) -> None:
        """Add fp32 `[hidden]` to every token's `y`."""
