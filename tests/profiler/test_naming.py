"""Predictors asked by a stream: the same thresholds and the same quality as from samples held in memory."""

import numpy as np
import pytest
import torch

from profiler.artifacts import UserError
from profiler.capture import Split, encode_magnitude
from profiler.matrix import Matrix
from profiler.naming import LogitCurves, LogitTap, NamedCounts, bins_for
from profiler.predictor import Predictor
from profiler.predictor_outline import EVERYTHING, NOTHING
from profiler.tap import ResidualTap
from profiler.training import calibrate, measure, predictor_quality

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
    predictors = [predictor(seed) for seed in range(3)]
    tap = LogitCurves(predictors, orders)
    assert isinstance(tap, ResidualTap)
    stream(tap, orders, layers)
    for p, (split, _), threshold in zip(predictors, layers, tap.thresholds(keep), strict=True):
        exact = calibrate(p, split, keep)
        assert threshold == pytest.approx(exact, abs=0.05)
        assert threshold <= exact  # a bin's edge: never less is kept
        assert measure(predictor_at(p, threshold), split).mass_recall >= keep - 1e-6


def predictor_at(p, threshold):
    return Predictor.low_rank(p.fc1, p.fc2, threshold, reads="residual")


def test_quality_is_that_of_samples_and_named_counts_are_by_id(layers, orders):
    predictors = [predictor(seed, threshold) for seed, threshold in enumerate((0.0, 1.5, NOTHING))]
    counts = NamedCounts(3, NEURONS)

    def see(layer, logits, magnitude):
        counts.ffn(layer, logits, magnitude, logits > predictors[layer].threshold)

    stream(LogitTap(predictors, orders, see), orders, layers)
    found = [predictor_quality(quality) for quality in counts.quality()]
    assert counts.tokens == TOKENS
    for index, (p, (split, _), quality) in enumerate(zip(predictors, layers, found, strict=True)):
        expected = measure(p, split)
        assert quality.tokens == TOKENS
        for name in ("active", "named", "recall", "precision", "mass_recall"):
            assert getattr(quality, name) == pytest.approx(getattr(expected, name), abs=1e-6)
        assert counts.counts[index].tolist() == p.named(split.hidden.float()).sum(0).tolist()
    assert found[2].named == 0


def show(tap, states, magnitude):
    tap.residual(0, states)
    tap.ffn(0, states, magnitude, None)


@pytest.fixture
def one(orders):
    """Curves of one layer."""
    return LogitCurves([predictor(0)], orders[:1])


def test_a_layer_in_which_nothing_fires_names_nothing(one):
    show(one, torch.randn(8, HIDDEN), torch.zeros(8, NEURONS))
    assert one.thresholds(0.9) == [NOTHING]


def test_logits_far_below_those_seen_first_are_kept_by_naming_everything(one):
    generator = torch.Generator().manual_seed(0)
    show(one, torch.randn(1, HIDDEN, generator=generator), torch.ones(1, NEURONS))
    show(one, 1e6 * torch.randn(9, HIDDEN, generator=generator), torch.ones(9, NEURONS))
    assert one.thresholds(0.9) == [EVERYTHING]
    assert one.thresholds(0.05)[0] > 0


def test_layers_that_nothing_predicts_name_everything(orders):
    tap = LogitCurves([Predictor.none(HIDDEN, NEURONS)], orders[:1])
    show(tap, torch.randn(3, HIDDEN), torch.ones(3, NEURONS))
    assert tap.thresholds(0.9) == [EVERYTHING]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(orders, value):
    for states, magnitude in (
        (torch.full((1, HIDDEN), value), torch.ones(1, NEURONS)),
        (torch.ones(1, HIDDEN), torch.full((1, NEURONS), value)),
    ):
        with pytest.raises(UserError, match="not finite"):
            show(LogitCurves([predictor(0)], orders[:1]), states, magnitude)


@pytest.mark.parametrize("greatest", [0.0, 1e-40, 1e-9, 0.7, 1.0, 3e4, 1e38])
def test_bins_reach_beyond_the_first_logits(greatest):
    bins = bins_for(torch.tensor([-greatest, greatest / 2]))
    assert bins.low <= -1.7 * greatest
    assert bins.high >= 1.2 * greatest
    assert bins.width <= max(greatest / 500, 1e-9)
