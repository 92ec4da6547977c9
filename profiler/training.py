"""Training of the perceptron family of predictors, and what is measured of every family: threshold and quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from profiler.artifacts import UserError
from profiler.capture import MINIMUM_TOKENS, LayerSamples, Split
from profiler.coverage import Tally
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.predictor_outline import EVERYTHING, NOTHING, PredictorQuality
from profiler.quality import LayerQuality

HEAVIEST = 10.0  # an activation counts for at most so many average ones of its token
WARM_UP = 30  # steps
FROM_NOTHING = 5
SPREAD = 3.0  # standard deviation of logits that training starts from
CHUNK = 512  # tokens measured at a time
MOST_RANKED = 1 << 24  # logits that are ranked against each other


@dataclass(frozen=True)
class Recipe:
    """How a predictor is trained.

    steps: of `batch` tokens each, from a product that is near already; `FROM_NOTHING` times as many from random ones.
    The length of training is no clock, so that a seed repeats it. learning_rate: at the top of the schedule; twice that
    from random weights. positive_weight: what an average active neuron counts against one inactive one. keep: share of
    a token's summed |activation| that the named neurons are to carry, on average; sets the threshold.
    """

    steps: int = 300
    batch: int = 1024
    learning_rate: float = 0.01
    positive_weight: float = 4.0
    keep: float = 0.99

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise UserError("a predictor is trained with steps and a batch of at least 1")
        if not (self.learning_rate > 0 and self.positive_weight > 0 and 0 < self.keep < 1):
            raise UserError("learning rate and positive weight are above 0; the share to keep lies between 0 and 1")


def check_samples(samples: LayerSamples) -> None:
    """Refuse samples that predictors cannot be made of.

    Raises:
        UserError: fewer than 256 training tokens, no held-out ones, or values that are not finite.
    """
    if samples.train.tokens < MINIMUM_TOKENS or not samples.calibration.tokens or not samples.test.tokens:
        raise UserError(
            f"a predictor needs at least {MINIMUM_TOKENS} tokens to train on and some held out, and there are "
            f"{samples.train.tokens}: give a longer text, better 50000 tokens"
        )
    for split in (samples.train, samples.calibration, samples.test):
        largest = int(split.magnitude.view(torch.uint8).max())  # from 0x7C on: infinities, NaN, negative numbers
        if largest >= 0x7C or not torch.isfinite(split.hidden.sum(dtype=torch.float64)):
            raise UserError("the samples hold values that are not finite numbers: the checkpoint is damaged")


def train_perceptron(
    train: Split, rank: int, recipe: Recipe, seed: int, on_step: Callable[[int], None] | None = None
) -> Predictor:
    """A low-rank perceptron from random weights, in f16, without a threshold yet; see `_descend`."""
    generator = torch.Generator().manual_seed(seed)
    hidden, neurons, scale = train.hidden.shape[1], train.magnitude.shape[1], _scale(train)
    fc1 = torch.randn(rank, hidden, generator=generator) / math.sqrt(hidden)
    fc2 = torch.randn(neurons, rank, generator=generator) * 0.1 / math.sqrt(rank)
    longer = replace(recipe, steps=FROM_NOTHING * recipe.steps, learning_rate=2 * recipe.learning_rate)
    fc1, fc2 = _descend(fc1, fc2, True, train, scale, longer, generator, on_step)
    return Predictor.low_rank(*balanced(fc1 / scale, fc2), threshold=0.0)


def tune_factors(
    near: Predictor, train: Split, recipe: Recipe, seed: int, on_step: Callable[[int], None] | None = None
) -> Predictor:
    """A product of low rank trained on from one that is near the gates' logits; see `_descend`.

    A fifth of the steps that a perceptron takes from random weights give as much.
    """
    assert near.family == "factors" and near.fc1 is not None and near.fc2 is not None
    generator, scale, every = torch.Generator().manual_seed(seed), _scale(train), slice(None)
    fc1, fc2 = near.fc1.widened(every) * scale, near.fc2.widened(every)
    bias = torch.zeros(near.neurons) if near.bias is None else near.bias
    states, _ = train.rows(slice(4 * CHUNK))
    logits = (states / scale) @ fc1.T @ fc2.T
    gain = SPREAD / logits.std().clamp(min=1e-12)  # so that few logits are in the flat parts of the sigmoid
    balance = (fc2.std() * gain / fc1.std().clamp(min=1e-12)).sqrt().clamp(min=1e-12)
    fc1, fc2 = fc1 * balance, fc2 * gain / balance
    fc1, fc2 = _descend(fc1, fc2, False, train, scale, recipe, generator, on_step, bias * gain)
    tuned = Predictor.low_rank(*balanced(fc1 / scale, fc2), threshold=0.0, family="factors")
    return tuned if near.bias is None else replace(tuned, bias=bias * gain)


def _descend(
    fc1: torch.Tensor,
    fc2: torch.Tensor,
    rectified: bool,
    train: Split,
    scale: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    on_step: Callable[[int], None] | None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy over all neurons, AdamW, cosine schedule.

    Positives are rare, and a missed neuron costs what it would have added: an active neuron weighs `positive_weight`
    times its |activation| over the average active one of the token, an inactive neuron weighs 1. The bias stays as it
    is. `on_step` is told the number of each step that has been done.
    """
    fc1.requires_grad_(), fc2.requires_grad_()
    optimizer = torch.optim.AdamW([fc1, fc2], lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in range(recipe.steps):
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
        states, magnitude = train.rows(torch.randint(train.tokens, (recipe.batch,), generator=generator))
        fc1.grad, fc2.grad = _gradients(fc1, fc2, rectified, bias, states / scale, magnitude, recipe.positive_weight)
        optimizer.step()
        if on_step:
            on_step(step + 1)
    return fc1.detach(), fc2.detach()


def _scale(train: Split) -> torch.Tensor:
    """Root mean square of the states."""
    return train.rows(slice(CHUNK))[0].square().mean().sqrt().clamp(min=1e-12)


def balanced(fc1: torch.Tensor, fc2: torch.Tensor) -> tuple[Matrix, Matrix]:
    """The matrices of a product in f16, after a factor went from one to the other so that both have the same range."""
    balance = (fc2.abs().max() / fc1.abs().max().clamp(min=1e-30)).sqrt().clamp(min=1e-12)
    return Matrix.of((fc1 * balance).half().contiguous()), Matrix.of((fc2 / balance).half().contiguous())


def calibrate(predictor: Predictor, split: Split, keep: float) -> float:
    """The highest threshold at which the named neurons carry `keep` of a token's summed |activation|, on average."""
    logits, masses = [], []
    for states, mass in _chunks(split):
        active = mass > 0
        logits.append(predictor.logits(states)[active])
        masses.append(per_token(mass)[active])
    order = torch.cat(logits).sort(descending=True)
    carried = torch.cat(masses)[order.indices].double().cumsum(0)
    if not len(carried):
        return NOTHING
    last = int(torch.searchsorted(carried, keep * carried[-1]))
    lowest = order.values[min(last, len(carried) - 1)]
    return float(torch.nextafter(lowest, torch.tensor(EVERYTHING)))


def mass_at_active(predictor: Predictor, split: Split) -> float:
    """Share of a token's summed |activation| that as many pairs carry as are active, those of the highest logits."""
    states, magnitude = split.rows(slice(MOST_RANKED // predictor.neurons + 1))
    logits, active = predictor.logits(states).flatten(), int((magnitude > 0).sum())
    if not active:
        return 1.0
    lowest = logits.kthvalue(len(logits) - active + 1).values
    share = per_token(magnitude)
    return float((share.flatten() * (logits >= lowest)).sum(dtype=torch.float64) / share.sum(dtype=torch.float64))


def measure(predictor: Predictor, split: Split) -> PredictorQuality:
    """The predictor's quality on a split."""
    tally = Tally()
    for states, magnitude in _chunks(split):
        tally.add(magnitude, predictor.named(states))
    return predictor_quality(tally.quality())


def predictor_quality(layer: LayerQuality) -> PredictorQuality:
    """What a layer's predictor was worth, without what only modes are asked for."""
    return PredictorQuality(layer.tokens, layer.active, layer.named, layer.recall, layer.precision, layer.mass_recall)


def per_token(magnitude: torch.Tensor) -> torch.Tensor:
    """|activation| as a share of its token's sum: tokens count alike, though some have a thousandfold of others."""
    return magnitude / magnitude.sum(1, keepdim=True).clamp(min=1e-30)


@torch.no_grad()
def _gradients(
    fc1: torch.Tensor,
    fc2: torch.Tensor,
    rectified: bool,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    magnitude: torch.Tensor,
    positive_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the weighted cross-entropy, up to a factor that AdamW does not see.

    Written out, since what is done per token and neuron takes most of the time: half of what autograd needs.
    """
    inactive = (magnitude == 0).float()
    count = magnitude.shape[1] - inactive.sum(1, keepdim=True)
    average = (magnitude.sum(1, keepdim=True) / count.clamp(min=1)).clamp(min=1e-30)
    weight = (magnitude / average).clamp_(max=HEAVIEST).mul_(positive_weight)  # zero where inactive
    before = states @ fc1.T
    middle = before.relu() if rectified else before
    logits = middle @ fc2.T
    if bias is not None:
        logits.add_(bias)
    slope = logits.sigmoid_().mul_(inactive.add_(weight)).sub_(weight).div_(len(states))
    back = slope @ fc2
    if rectified:
        back.mul_(before > 0)
    return back.T @ states, slope.T @ middle


def _chunks(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, split.tokens, CHUNK):
        yield split.rows(slice(start, start + CHUNK))
