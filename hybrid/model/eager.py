"""The operators of a step one after the other in torch, for any number of tokens on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hybrid.model.decoder import ComputeUnit, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.kv_cache import Span
from hybrid.model.rotary import inverse_frequencies
from hybrid.ops import cpu, reference
from hybrid.spec import ModelSpec

FeedForward = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]  # see `Operators.feed_forward`


@dataclass(frozen=True)
class Step:
    """Tokens of one or more sequences that pass through the model together."""

    token_ids: Sequence[int]
    spans: Sequence[Span]

    @property
    def positions(self) -> list[int]:
        """Each token's place in its sequence."""
        return [position for span in self.spans for position in range(span.first_position, span.end)]

    @property
    def attended(self) -> int:
        """Sum over tokens of the keys that each attends to."""
        return sum(span.count * (span.first_position + span.end + 1) // 2 for span in self.spans)


class EagerOperators:
    """Computes as it is called; see `hybrid.model.decoder.Operators`."""

    def __init__(self, spec: ModelSpec, step: Step, feed_forward: FeedForward) -> None:
        self.spec, self.step, self.feed_forward = spec, step, feed_forward
        self._pool: cpu.Pool | None = None  # of the unit that the state followed
        self._positions = torch.tensor(step.positions)
        self._frequencies = inverse_frequencies(spec) if spec.positions == "rope" else None

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`."""
        device = outer.embeddings.device
        with cpu.as_slow_as(outer.embeddings_unit.pool):
            x = reference.embed(outer.embeddings, torch.tensor(self.step.token_ids, device=device))
            if outer.positions is not None:
                places = (self._positions + self.spec.position_offset).to(device)
                x = x + reference.embed(outer.positions, places)
        return x

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`."""
        self._pool = unit.pool
        return x.to(unit.device)

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        with cpu.as_slow_as(self._pool):
            if self.spec.norm == "rms":
                return reference.rms_norm(x, norm.weight, self.spec.norm_eps)
            return reference.layer_norm(x, norm.weight, norm.bias, self.spec.norm_eps)

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
        """See `Operators`."""
        return [unit.linear(x, projection.weight, projection.bias) for projection in projections]

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        with cpu.as_slow_as(self._pool):
            return self._attend(layer, q, k, v)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        with cpu.as_slow_as(self._pool):
            return x + y

    def _attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        spec, tokens = self.spec, len(q)
        q = q.view(tokens, spec.n_heads, spec.head_dim)
        k, v = (t.view(tokens, spec.n_kv_heads, spec.head_dim) for t in (k, v))
        if layer.head_norms is not None:
            q = reference.rms_norm(q, layer.head_norms.q, spec.norm_eps)
            k = reference.rms_norm(k, layer.head_norms.k, spec.norm_eps)
        if self._frequencies is not None:
            places, frequencies = self._positions.to(q.device), self._frequencies.to(q.device)
            q, k = reference.rope(q, places, frequencies), reference.rope(k, places, frequencies)
        mixed, at = [], 0
        for span in self.step.spans:
            here = slice(at, at + span.count)
            layer.pages.write(span, k[here], v[here])
            keys, values = layer.pages.read(span)
            mixed.append(reference.attention(q[here], keys, values, span.first_position, spec.sliding_window))
            at += span.count
        return torch.cat(mixed).reshape(tokens, spec.q_size)
