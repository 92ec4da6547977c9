"""The profile and the predictors that go with planted weights: known from how the weights were made, not measured."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality
from profiler.profile import Counts, Profile
from synthetic.weights import CONSTANT, PlantedWeights

TOKENS = 1 << 20  # that the planted counts speak of: enough for a neuron that fires once in 100,000 tokens
# Of the constant in fc1: the thresholds in fc2 are then of the size of its other weights, which blocks of q8_0 want.
LOUDNESS = 8.0


def planted_predictor(weights: PlantedWeights, layer: int) -> Predictor:
    """A predictor whose logits are the layer's own gates (ungated: what the activation is applied to), up to rounding;
    bf16.

    The gates are `G B x + threshold column`, and `B x = relu(B x) - relu(-B x)`. So fc1 is `[B; -B; constant]` and fc2
    `[G, -G, thresholds]`. A threshold below zero names more rows than fire.
    """
    shape = weights.shape
    mixture, basis = (factor.cpu() for factor in weights.factors(layer))
    rank, first = shape.predictor_rank, shape.rank
    fc1 = torch.zeros(rank, shape.hidden)
    fc1[:first], fc1[first : 2 * first] = basis, -basis
    fc2 = torch.zeros(shape.ffn, rank)
    fc2[:, :first], fc2[:, first : 2 * first] = mixture, -mixture
    # What the constant dimension of the normalised state is, and the standard deviation of the others.
    spread = (1 + CONSTANT) ** -0.5 if shape.holds_constant else 1.0
    constant = spread * (shape.hidden * CONSTANT) ** 0.5 if shape.holds_constant else 1.0
    fc1[2 * first, 0] = LOUDNESS / constant
    fc2[:, 2 * first] = -weights.thresholds(layer) * spread / LOUDNESS
    return Predictor.low_rank(Matrix.of(fc1.bfloat16()), Matrix.of(fc2.bfloat16()), -weights.overshoot_shift * spread)


def planted_predictors(weights: PlantedWeights, source_digest: str, quantised: bool) -> PredictorSet:
    """Predictors of all layers, in q8_0 or in bf16. Their quality is what was planted, measured on no token."""
    active, named = (float(weights.named_share(shift).mean()) for shift in (0.0, weights.overshoot_shift))
    quality = PredictorQuality(0, active, named, recall=1.0, precision=active / named, mass_recall=1.0)
    layers = [planted_predictor(weights, layer) for layer in range(weights.shape.layers)]
    layers = [p.quantised() for p in layers] if quantised else layers
    return PredictorSet(source_digest, tuple(layers), (quality,) * len(layers))


def planted_profile(weights: PlantedWeights, source_digest: str) -> Profile:
    """Expected counts of 2**20 tokens whose states are independent, from the planted probabilities."""
    active = torch.stack([weights.firing(layer) for layer in range(weights.shape.layers)])
    named = torch.special.ndtr(weights.overshoot_shift + torch.special.ndtri(active))

    def counts(shares: torch.Tensor) -> Counts:
        return np.asarray((shares * TOKENS).round().numpy(), np.int64)

    return Profile(
        source_digest=source_digest,
        corpus_digest=hashlib.sha256(f"planted: {weights.shape}".encode()).hexdigest(),
        tokens=TOKENS,
        active=counts(active),
        named=counts(named),
        union4=counts(1 - (1 - active) ** 4),
        union16=counts(1 - (1 - active) ** 16),
        thresholds=(0.0,) * weights.shape.layers,
        has_predictors=True,
    )
