"""What a mode names of what is active, measured: for a layer's tokens at hand, or as a tap while a text runs."""

from __future__ import annotations

import torch

from profiler.artifacts import UserError
from profiler.quality import LayerQuality


class Tally:
    """Sums of one layer, from which its `LayerQuality` follows; tokens may come in any pieces."""

    def __init__(self) -> None:
        self._tokens = self._pairs = self._active = self._named = self._both = self._with_mass = 0
        self._carried = self._mass = self._kept = 0.0

    def add(self, magnitude: torch.Tensor, named: torch.Tensor | None) -> None:
        """Count tokens: |activation|, fp32 `[tokens, neurons]`, and bool of the same shape, None for all named."""
        mass = magnitude.sum(1, keepdim=True)
        self._tokens += len(magnitude)
        self._pairs += magnitude.numel()
        active = int(magnitude.count_nonzero())
        self._active += active
        self._with_mass += int(mass.count_nonzero())
        self._mass += float(mass.sum(dtype=torch.float64))
        if named is None:
            named = torch.ones_like(magnitude, dtype=torch.bool)
        kept = magnitude * named
        self._named += int(named.count_nonzero())
        self._both += int(kept.count_nonzero())
        carried = kept.sum(1, keepdim=True)
        self._kept += float(carried.sum(dtype=torch.float64))
        self._carried += float((carried / mass.clamp(min=1e-30)).sum(dtype=torch.float64))

    def quality(self) -> LayerQuality:
        """The shares so far.

        Raises:
            UserError: no tokens, or activations that are not finite numbers.
        """
        if not self._tokens:
            raise UserError("the text is too short to measure layers on: it has no token")
        if not self._mass < float("inf"):
            raise UserError("the activations hold values that are not finite numbers: the checkpoint is damaged")
        return LayerQuality(
            tokens=self._tokens,
            active=self._active / self._pairs,
            named=self._named / self._pairs,
            recall=self._both / self._active if self._active else 1.0,
            precision=self._both / self._named if self._named else 1.0,
            mass_recall=min(1.0, self._carried / self._with_mass) if self._with_mass else 1.0,
            dropped_mass=max(0.0, 1 - self._kept / self._mass) if self._mass else 0.0,
        )


class Coverage:
    """A tap that tallies every layer; see `profiler.tap.Tap`."""

    def __init__(self, layers: int) -> None:
        self._layers = [Tally() for _ in range(layers)]

    def document(self) -> None:
        """Nothing: every token counts by itself."""

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """Count the next tokens of a layer; where nothing says what is named, all of it is."""
        self._layers[layer].add(activation.abs(), named)

    def quality(self) -> tuple[LayerQuality, ...]:
        """Of every layer. Raises as `Tally.quality`."""
        return tuple(tally.quality() for tally in self._layers)
