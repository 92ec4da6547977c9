"""The decoder: one for all families. Attention, norms and residuals are here; the FFN is handed in as a part.

Activations are fp32. A layer runs where its weights are: the hidden state follows it from device to device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hybrid.model.kv_cache import LayerPages, Span
from hybrid.model.rotary import inverse_frequencies
from hybrid.ops import reference
from hybrid.spec import ModelSpec

FeedForward = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, fp32 [tokens, hidden]) -> fp32 [tokens, hidden]


class LinearOperator(Protocol):
    """`y = x @ weightᵀ + bias` on one unit: fp32 in and out, 16-bit weight `[out, in]`."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """fp32 `[tokens, out]`."""


@dataclass(frozen=True)
class NormWeights:
    """fp32 `[hidden]`; RMS norms have no bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Projection:
    """A 16-bit matrix `[out, in]` and its fp32 bias `[out]`, if any."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class LayerParts:
    """What one layer's attention needs, all of it on one device, and the operator that multiplies there."""

    attention_norm: NormWeights
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    ffn_norm: NormWeights
    pages: LayerPages
    linear: LinearOperator


@dataclass(frozen=True)
class OuterParts:
    """What stands before the first layer and after the last. `head` is the embedding matrix where they are tied."""

    embeddings: torch.Tensor  # 16 bit [vocab, hidden]
    positions: torch.Tensor | None  # 16 bit [positions + offset, hidden], learned positions only
    final_norm: NormWeights
    head: torch.Tensor  # 16 bit [vocab, hidden]
    head_linear: LinearOperator


@dataclass(frozen=True)
class Step:
    """Tokens of one or more sequences that pass through the model together."""

    token_ids: torch.Tensor  # int64 [tokens]
    spans: Sequence[Span]

    @property
    def positions(self) -> torch.Tensor:
        """int64 `[tokens]`: each token's place in its sequence."""
        return torch.cat([torch.arange(s.first_position, s.end) for s in self.spans])


class Decoder:
    """Hidden states and logits from tokens, for any `ModelSpec`."""

    def __init__(
        self, spec: ModelSpec, outer: OuterParts, layers: Sequence[LayerParts], feed_forward: FeedForward
    ) -> None:
        self.spec = spec
        self.outer = outer
        self.layers = layers
        self.feed_forward = feed_forward
        self._frequencies = inverse_frequencies(spec) if spec.positions == "rope" else None

    def forward(self, step: Step) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: the normalised states that the head reads. Fills the pages of every layer."""
        positions = step.positions
        x = self._embed(step.token_ids, positions)
        for index, layer in enumerate(self.layers):
            x = x.to(layer.ffn_norm.weight.device)
            x = x + self._attention(layer, self._norm(x, layer.attention_norm), step, positions)
            x = x + self.feed_forward(index, self._norm(x, layer.ffn_norm))
        return self._norm(x.to(self.outer.final_norm.weight.device), self.outer.final_norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, vocab]` of what `forward` returned, or of some of its rows."""
        return self.outer.head_linear(hidden, self.outer.head, None)

    def _embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        device = self.outer.embeddings.device
        x = self.outer.embeddings[token_ids.to(device)].float()
        if self.outer.positions is not None:
            x = x + self.outer.positions[(positions + self.spec.position_offset).to(device)].float()
        return x

    def _norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        if self.spec.norm == "rms":
            return reference.rms_norm(x, norm.weight, self.spec.norm_eps)
        return reference.layer_norm(x, norm.weight, norm.bias, self.spec.norm_eps)

    def _attention(self, layer: LayerParts, x: torch.Tensor, step: Step, positions: torch.Tensor) -> torch.Tensor:
        spec, tokens = self.spec, x.shape[0]
        q = layer.linear(x, layer.q.weight, layer.q.bias).view(tokens, spec.n_heads, spec.head_dim)
        k = layer.linear(x, layer.k.weight, layer.k.bias).view(tokens, spec.n_kv_heads, spec.head_dim)
        v = layer.linear(x, layer.v.weight, layer.v.bias).view(tokens, spec.n_kv_heads, spec.head_dim)
        if self._frequencies is not None:
            places, frequencies = positions.to(x.device), self._frequencies.to(x.device)
            q, k = reference.rope(q, places, frequencies), reference.rope(k, places, frequencies)
        mixed, at = [], 0
        for span in step.spans:
            here = slice(at, at + span.count)
            layer.pages.write(span, k[here], v[here])
            keys, values = layer.pages.read(span)
            mixed.append(reference.attention(q[here], keys, values, span.first_position, spec.sliding_window))
            at += span.count
        return layer.linear(torch.cat(mixed).reshape(tokens, spec.q_size), layer.o.weight, layer.o.bias)
