"""Predictors of random weights, for the tests of what they are and of how they are stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality, Trial


@pytest.fixture(scope="session")
def make_predictor() -> Callable[..., Predictor]:
    """`make_predictor(**sizes)`: a perceptron; the same one for the same arguments."""

    def make(hidden=6, neurons=10, rank=3, threshold=0.25, seed=0, dtype=torch.float16) -> Predictor:
        generator = torch.Generator().manual_seed(seed)
        fc1 = torch.randn(rank, hidden, generator=generator).to(dtype)
        fc2 = torch.randn(neurons, rank, generator=generator).to(dtype)
        return Predictor.low_rank(Matrix.of(fc1), Matrix.of(fc2), threshold)

    return make


@pytest.fixture(scope="session")
def make_wide(make_predictor: Callable[..., Predictor]) -> Callable[..., Predictor]:
    """`make_wide(seed, **more)`: one whose sizes are whole blocks, so that it can be quantised."""

    def make(seed=0, **more) -> Predictor:
        return make_predictor(hidden=64, neurons=50, rank=32, seed=seed, **more)

    return make


@pytest.fixture(scope="session")
def make_set(make_predictor: Callable[..., Predictor]) -> Callable[..., PredictorSet]:
    """`make_set(*layers)`: predictors of a model, all of one quality; without any, three that differ."""
    quality = PredictorQuality(tokens=100, active=0.1, named=0.12, recall=0.95, precision=0.8, mass_recall=0.99)

    def make(*layers: Predictor, trials: tuple[tuple[Trial, ...], ...] = ()) -> PredictorSet:
        if not layers:
            odd = make_predictor(seed=2, rank=5, threshold=-1.5)
            layers = (make_predictor(seed=1), odd, make_predictor(seed=3, threshold=float("inf")))
        return PredictorSet("digest", layers, (quality,) * len(layers), trials)

    return make
