"""The decoder: one for all families. What it consists of is here; what computes it is handed in as `Operators`.

Activations are fp32. A layer runs where its weights are: the hidden state follows it from device to device.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hybrid.model.kv_cache import LayerPages
from hybrid.ops.cpu import Pool
from hybrid.spec import ModelSpec
from profiler.matrix import Matrix


class ComputeUnit(Protocol):
    """Where weights lie and who multiplies with them: `pool` are the threads of a unit in host memory, and `kernels`
    says of another one whether device operators compute there.
    """

    name: str
    device: torch.device
    pool: Pool | None
    kernels: bool

    def linear(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        """`x @ weightᵀ + bias`: fp32 `[tokens, in]` to fp32 `[tokens, out]`."""


@dataclass(frozen=True)
class NormWeights:
    """fp32 `[hidden]`; RMS norms have no bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class HeadNorms:
    """fp32 `[head_dim]` each: weights of the RMS norms of every query head and of every key head."""

    q: torch.Tensor
    k: torch.Tensor


@dataclass(frozen=True)
class Projection:
    """A matrix `[out, in]` and its fp32 bias `[out]`, if any."""

    weight: Matrix
    bias: torch.Tensor | None


@dataclass(frozen=True)
class LayerParts:
    """What one layer's attention needs, all of it on one unit. `ffn_norm` is `attention_norm` where they share it."""

    attention_norm: NormWeights
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    head_norms: HeadNorms | None
    ffn_norm: NormWeights
    pages: LayerPages
    unit: ComputeUnit


@dataclass(frozen=True)
class OuterParts:
    """What stands before the first layer and after the last. `head` is the embedding matrix where they are tied."""

    embeddings: Matrix  # [vocab, hidden]
    positions: Matrix | None  # [positions + offset, hidden], learned positions only
    final_norm: NormWeights
    head: Matrix  # [vocab, hidden]
    embeddings_unit: ComputeUnit
    head_unit: ComputeUnit  # the final norm is there too


class Operators(Protocol):
    """What a decoder is computed with, for the tokens of one step. Tensors are fp32 `[tokens, ...]`."""

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """The tokens' embeddings `[tokens, hidden]`, learned positions included."""

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """The state where a unit is, which computes what comes next: a layer, or what belongs to none."""

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """The normalised state."""

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> Sequence[torch.Tensor]:
        """The state times several matrices, `[tokens, out]` each."""

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Heads normalised where the layer says so, positions applied, keys and values stored, attention of each token
        over its sequence: `[tokens, q_size]`. q and k may be given up."""

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The FFN of a layer, of the normalised state; the state before that norm may be what its predictor reads."""

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The sum, in whose place x may be given up."""


@dataclass(frozen=True)
class Decoder:
    """Hidden states and logits from tokens, for any `ModelSpec`."""

    spec: ModelSpec
    outer: OuterParts
    layers: Sequence[LayerParts]

    def forward(self, ops: Operators) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: the normalised states that the head reads. Fills the pages of every layer."""
        layers = self.layer_by_layer(ops)
        while True:
            try:
                next(layers)
            except StopIteration as done:
                hidden: torch.Tensor = done.value
                return hidden

    def layer_by_layer(self, ops: Operators) -> Generator[None, None, torch.Tensor]:
        """As `forward`, and whoever asks may do something else between two layers."""
        x = ops.embed(self.outer)
        for index in range(len(self.layers)):
            if index:
                yield
            x = self.layer(ops, index, x)
        return ops.norm(ops.follow(x, self.outer.head_unit, None), self.outer.final_norm)

    def layer(self, ops: Operators, index: int, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: the state after a layer, of the state before it. Fills the layer's pages."""
        layer = self.layers[index]
        x = ops.follow(x, layer.unit, index)
        normalised = ops.norm(x, layer.attention_norm)
        q, k, v = ops.project(layer.unit, normalised, (layer.q, layer.k, layer.v))
        (mixed,) = ops.project(layer.unit, ops.attend(layer, q, k, v), (layer.o,))
        if not self.spec.parallel:
            x = ops.add(x, mixed)
        if not self.spec.shared_norm:
            normalised = ops.norm(x, layer.ffn_norm)
        y = ops.feed_forward(index, normalised, x)
        if self.spec.parallel:
            x = ops.add(x, mixed)
        return ops.add(x, y)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, vocab]` of what `forward` returned, or of some of its rows."""
        return self.outer.head_unit.linear(hidden, self.outer.head, None)
