import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from profiler.artifacts import UserError
from profiler.capture import LayerSamples, Split, encode_magnitude
from profiler.selection import Target, search
from profiler.training import Recipe, calibrate, mass_at_active, measure, train_perceptron

HIDDEN, NEURONS = 24, 96
QUICK = Recipe(steps=50, batch=256)


def planted(tokens: int, seed: int, hidden: int = HIDDEN, scale: float = 1.0) -> Split:
    """A ReGLU layer whose gates see only eight directions of the state, about a tenth of the neurons active."""
    layer = torch.Generator().manual_seed(0)
    gate = torch.randn(NEURONS, 8, generator=layer) @ torch.randn(8, hidden, generator=layer) / math.sqrt(8 * hidden)
    up = torch.randn(NEURONS, hidden, generator=layer) / math.sqrt(hidden)
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))
    activation = torch.relu(x @ gate.T - 1.2) * (x @ up.T)
    return Split((x * scale).bfloat16(), encode_magnitude(activation))


def samples(train: int = 8000, held: int = 2000, scale: float = 1.0) -> LayerSamples:
    return LayerSamples(*(planted(n, seed, scale=scale) for seed, n in enumerate((train, held, held), start=1)))


def train_predictor(data: LayerSamples, recipe: Recipe, seed: int):
    """One of rank 16, and its quality."""
    target = Target(vector_bytes=2 * HIDDEN, parts=3, rank=16)
    (chosen,) = search(data, None, recipe, target, seed)
    return chosen.predictor, chosen.quality


@pytest.fixture(scope="module")
def trained():
    return train_predictor(samples(), QUICK, seed=0)


def test_a_planted_pattern_is_found_in_documents_never_trained_on(trained):
    _, quality = trained
    assert 0.05 < quality.active < 0.2
    assert quality.tokens == 2000
    assert quality.mass_recall > 0.98
    assert quality.recall > 0.85
    assert quality.named < 2 * quality.active


def test_training_is_better_than_naming_the_most_frequent_neurons(trained):
    _, quality = trained
    data = samples()
    frequency = (data.train.magnitude.float() > 0).float().mean(0)
    mass = data.test.magnitude.float()
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)
    hottest = frequency.argsort(descending=True)[: round(quality.named * NEURONS)]
    assert quality.mass_recall > share[:, hottest].sum(1).mean() + 0.2


def test_quality_is_what_a_count_by_hand_says(trained):
    predictor, _ = trained
    split = planted(700, 9)
    quality = measure(predictor, split)
    named = predictor.named(split.hidden).numpy()
    mass = split.magnitude.float().numpy().astype(np.float64)
    active = mass > 0
    kept = (mass * named).sum(1)[active.any(1)] / mass.sum(1)[active.any(1)]
    assert quality.active == pytest.approx(active.mean())
    assert quality.named == pytest.approx(named.mean(), rel=1e-3)
    assert quality.recall == pytest.approx((named & active).sum() / active.sum(), rel=1e-3)
    assert quality.precision == pytest.approx((named & active).sum() / named.sum(), rel=1e-3)
    assert quality.mass_recall == pytest.approx(kept.mean(), rel=1e-3)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99, 0.999])
def test_the_threshold_is_the_highest_that_keeps_what_was_asked(trained, keep):
    predictor, _ = trained
    split = samples().calibration
    threshold = calibrate(predictor, split, keep)
    logits = predictor.logits(split.hidden)
    mass = split.magnitude.float()
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)
    goal = keep * float((mass.sum(1) > 0).sum())
    assert float(share[logits > threshold].double().sum()) >= goal * (1 - 1e-4)
    above = logits > threshold
    lowest = logits[above & (mass > 0)].min()
    assert float(share[logits > lowest].double().sum()) <= goal * (1 + 1e-4)
    assert above.any()


def test_keeping_more_names_more():
    data = samples(2000, 500)
    shares = []
    for keep in (0.8, 0.95, 0.999):
        _, quality = train_predictor(data, replace(QUICK, steps=12, keep=keep), seed=0)
        shares.append((quality.named, quality.mass_recall))
    assert shares == sorted(shares)


def test_one_loud_token_does_not_decide_for_the_others(trained):
    predictor, _ = trained
    data = samples()
    loud = data.calibration.magnitude.float()
    loud[0] *= 1000
    raised = Split(data.calibration.hidden, encode_magnitude(loud))
    quiet = measure(replace(predictor, threshold=calibrate(predictor, raised, 0.99)), data.test)
    assert quiet.mass_recall > 0.98


def test_a_seed_repeats_the_predictor():
    data, recipe = samples(1000, 300), replace(QUICK, steps=8)
    one, _ = train_predictor(data, recipe, seed=3)
    same, _ = train_predictor(data, recipe, seed=3)
    other, _ = train_predictor(data, recipe, seed=4)
    assert torch.equal(one.fc1.data, same.fc1.data)
    assert torch.equal(one.fc2.data, same.fc2.data)
    assert one.threshold == same.threshold
    assert not torch.equal(one.fc1.data, other.fc1.data)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_hidden_state_does_not_matter(scale):
    _, quality = train_predictor(samples(4000, 1000, scale), replace(QUICK, steps=24), seed=0)
    _, plain = train_predictor(samples(4000, 1000), replace(QUICK, steps=24), seed=0)
    assert quality.mass_recall == pytest.approx(plain.mass_recall, abs=0.01)
    assert quality.named == pytest.approx(plain.named, rel=0.1)


def test_progress_tells_every_step():
    steps: list[int] = []
    train_perceptron(samples(300, 50).train, 16, replace(QUICK, steps=7), seed=0, on_step=steps.append)
    assert steps == list(range(1, 36))


def with_magnitude(data: LayerSamples, fill: float) -> LayerSamples:
    def filled(split: Split) -> Split:
        return Split(split.hidden, encode_magnitude(torch.full(split.magnitude.shape, fill)))

    return LayerSamples(filled(data.train), filled(data.calibration), filled(data.test))


def test_a_layer_in_which_nothing_fires_is_named_by_nothing():
    predictor, quality = train_predictor(with_magnitude(samples(300, 50), 0.0), QUICK, seed=0)
    assert not predictor.named(torch.randn(5, HIDDEN)).any()
    assert (quality.active, quality.named) == (0, 0)
    assert (quality.recall, quality.precision, quality.mass_recall) == (1, 1, 1)


def test_a_layer_in_which_everything_fires_is_named_whole():
    predictor, quality = train_predictor(with_magnitude(samples(300, 50), 0.5), QUICK, seed=0)
    assert predictor.named(torch.randn(5, HIDDEN)).all()
    assert (quality.active, quality.named, quality.recall) == (1, 1, 1)
    assert (quality.precision, quality.mass_recall) == (1, pytest.approx(1))


def test_a_layer_that_fires_only_in_training_names_nothing():
    data = samples(300, 50)
    silent = with_magnitude(data, 0.0)
    predictor, quality = train_predictor(replace(data, calibration=silent.calibration), replace(QUICK, steps=1), seed=0)
    assert math.isinf(predictor.threshold)
    assert quality.named == 0
    assert quality.mass_recall == 0


def test_neurons_that_never_fire_are_hardly_ever_named():
    data = samples(4000, 1000)
    for split in (data.train, data.calibration, data.test):
        split.magnitude.view(torch.uint8)[:, ::2] = 0
    predictor, quality = train_predictor(data, QUICK, seed=0)
    assert predictor.named(data.test.hidden)[:, ::2].float().mean() < 0.1 * quality.named


@pytest.mark.parametrize(("train", "held"), [(255, 100), (300, 0)])
def test_too_few_tokens_say_how_many_are_needed(train, held):
    with pytest.raises(UserError, match="at least 256"):
        train_predictor(samples(train, held), QUICK, seed=0)


@pytest.mark.parametrize("part", ["train", "calibration", "test"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(part, bad):
    for name in ("hidden", "magnitude"):
        data = samples(300, 50)
        getattr(getattr(data, part), name)[7, 3] = bad
        with pytest.raises(UserError, match="not finite"):
            train_predictor(data, QUICK, seed=0)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"keep": 1.0}, {"positive_weight": -1.0}]
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(UserError):
        Recipe(**wrong)


def test_mass_of_as_many_as_are_active_is_what_sorting_says(trained):
    predictor, _ = trained
    split = planted(600, 5)
    logits, mass = predictor.logits(split.hidden).double(), split.magnitude.double()
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)
    best = logits.flatten().argsort(descending=True)[: int((mass > 0).sum())]
    assert mass_at_active(predictor, split) == pytest.approx(float(share.flatten()[best].sum() / share.sum()), rel=1e-4)
