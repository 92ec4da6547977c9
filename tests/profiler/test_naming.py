"""Predictors asked by a stream: the same thresholds and the same quality as from samples held in memory."""

import numpy as np
import pytest
import torch

from profiler.artifacts import UserError
from profiler.capture import Split, encode_magnitude
from profiler.matrix import Matrix
from profiler.naming import MassCurves, NamedTallies, ResidualLogits, bins_for
from profiler.predictor import EVERYTHING, NOTHING, Predictor
from profiler.tap import ResidualTap
from profiler.training import calibrate, measure

HIDDEN, NEURONS, TOKENS = 12, 30, 400


def predictor(seed, threshold=0.0):
    generator = torch.Generator().manual_seed(seed)
    fc1, fc2 = (torch.randn(*shape, generator=generator).half() for shape in ((5, HIDDEN), (NEURONS, 5)))
    return Predictor.low_rank(Matrix.of(fc1), Matrix.of(fc2), threshold, reads="residual")


def samples(seed):
    """States, and activations that float8 holds exactly, so that a `Split` says the same."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    activation = torch.randn(TOKENS, NEURONS, generator=generator) + states[:, :1].float()
    magnitude = encode_magnitude(activation.relu())
    return Split(states, magnitude), magnitude.float()


def stream(tap, orders, layers, sizes=(1, 7, 100, 292)):
    """Show a tap what the layers' splits hold, in rows, in pieces."""
    at = 0
    for size in sizes:
        for layer, (split, magnitude) in enumerate(layers):
            tap.residual(layer, split.hidden[at : at + size].float())
            tap.ffn(layer, torch.zeros(size, HIDDEN), magnitude[at : at + size][:, orders[layer]], None)
        at += size


@pytest.fixture
def layers():
    return [samples(seed) for seed in range(3)]


@pytest.fixture
def orders():
    return [np.random.default_rng(seed).permutation(NEURONS).astype(np.int32) for seed in range(3)]


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_thresholds_keep_what_those_from_samples_keep(layers, orders, keep):
    predictors, curves = [predictor(seed) for seed in range(3)], MassCurves(3)
    tap = ResidualLogits(predictors, orders, curves.add)
    assert isinstance(tap, ResidualTap)
    stream(tap, orders, layers)
    for p, (split, _), threshold in zip(predictors, layers, curves.thresholds(keep), strict=True):
        exact = calibrate(p, split, keep)
        assert threshold == pytest.approx(exact, abs=0.01)
        assert threshold <= exact  # a bin's edge: never less is kept
        assert measure(predictor_at(p, threshold), split).mass_recall >= keep - 1e-6


def predictor_at(p, threshold):
    return Predictor.low_rank(p.fc1, p.fc2, threshold, reads="residual")


def test_quality_is_that_of_samples_and_named_counts_are_by_id(layers, orders):
    predictors = [predictor(seed, threshold) for seed, threshold in enumerate((0.0, 1.5, NOTHING))]
    tallies = NamedTallies(predictors)
    stream(ResidualLogits(predictors, orders, tallies.add), orders, layers)
    for index, (p, (split, _), quality) in enumerate(zip(predictors, layers, tallies.quality(), strict=True)):
        expected = measure(p, split)
        assert quality.tokens == TOKENS
        for name in ("active", "named", "recall", "precision", "mass_recall"):
            assert getattr(quality, name) == pytest.approx(getattr(expected, name), abs=1e-6)
        assert tallies.named[index].tolist() == p.named(split.hidden.float()).sum(0).tolist()
    assert tallies.quality()[2].named == 0


def test_a_layer_in_which_nothing_fires_names_nothing():
    curves = MassCurves(1)
    curves.add(0, torch.randn(8, NEURONS), torch.zeros(8, NEURONS))
    assert curves.thresholds(0.9) == [NOTHING]


def test_logits_far_below_those_seen_first_are_kept_by_naming_everything():
    curves = MassCurves(1)
    curves.add(0, torch.ones(1, NEURONS), torch.ones(1, NEURONS))
    curves.add(0, torch.full((9, NEURONS), -1e6), torch.ones(9, NEURONS))
    assert curves.thresholds(0.5) == [EVERYTHING]
    assert curves.thresholds(0.05)[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("logits", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(logits):
    with pytest.raises(UserError, match="not finite"):
        MassCurves(1).add(0, torch.full((1, NEURONS), logits), torch.ones(1, NEURONS))
    with pytest.raises(UserError, match="not finite"):
        MassCurves(1).add(0, torch.ones(1, NEURONS), torch.full((1, NEURONS), logits))


@pytest.mark.parametrize("greatest", [0.0, 1e-40, 1e-9, 0.7, 1.0, 3e4, 3e38])
def test_bins_reach_twice_as_far_as_the_first_logits(greatest):
    bins = bins_for(greatest)
    assert bins.high >= 2 * greatest
    assert bins.width <= max(2 * greatest / (1 << 14), 1e-29)
