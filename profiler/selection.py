"""The choice of a layer's predictor: the smallest that reaches a target, and within a budget for all layers together.

Every candidate is calibrated on tokens that it was not trained on, and judged on others by the bytes that a token then
reads: the predictor's own, the gates of named rows, and the rest of the rows that are active too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from profiler.artifacts import UserError, format_size
from profiler.capture import LayerSamples, Split
from profiler.predictor import EVERYTHING, NOTHING, Predictor, PredictorQuality, PredictorSet, Trial
from profiler.training import Recipe, calibrate, check_samples, mass_at_active, measure, train_perceptron
from profiler.training_free import Gates, factors, few_bits

LOW_BITS = ("q4_0",)
STEP = 32  # ranks are whole blocks
SPARSE = 0.1  # a layer with a smaller share of active neurons starts its search at a lower rank


@dataclass(frozen=True)
class Target:
    """What a predictor is to reach.

    most_named: neurons that it may name over those that are active, when it keeps what the recipe says. rank: the one
    rank to train, None for a search. vector_bytes and parts: of the rows that it names, `parts` vectors each.
    """

    vector_bytes: int
    parts: int
    most_named: float = 1.0
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError("a predictor has a rank of at least 1")
        if not self.most_named > 0:
            raise UserError("a predictor that may name nothing is of no use")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A calibrated predictor, what it is worth on test tokens, and how it was judged."""

    predictor: Predictor
    quality: PredictorQuality
    trial: Trial

    def reaches(self, target: Target) -> bool:
        """Whether it names few enough neurons."""
        return self.quality.named <= target.most_named * self.quality.active


def search(
    samples: LayerSamples,
    gates: Gates,
    recipe: Recipe,
    target: Target,
    seed: int,
    on_trial: Callable[[Trial], None] | None = None,
) -> list[Candidate]:
    """What was tried for one layer, the chosen one first.

    Training-free ones are tried once each. Ranks of the perceptron are tried from a guess by the layer's sparsity:
    upwards until one reaches the target or a larger one names no fewer, downwards as long as smaller ones reach
    it. A layer in which nothing was active gets a predictor that names nothing; one in which everything always was,
    none. `on_trial` is told of each.

    Raises:
        UserError: too few tokens, or values that are not finite; see `check_samples`.
    """
    check_samples(samples)
    bits = samples.train.magnitude.view(torch.uint8)
    hidden, neurons = samples.train.hidden.shape[1], samples.train.magnitude.shape[1]
    tell = on_trial or (lambda trial: None)
    if not bits.any() or bits.all():
        threshold = EVERYTHING if bits.any() else NOTHING
        predictor = Predictor.none(hidden, neurons, threshold)
        return [_chosen(_judge(predictor, samples, recipe, target))]
    tried: list[Candidate] = []

    def attempt(predictor: Predictor | None) -> Candidate | None:
        if predictor is None:
            return None
        candidate = _judge(_calibrated(predictor, samples.calibration, recipe), samples, recipe, target)
        tried.append(candidate)
        tell(candidate.trial)
        return candidate

    trained: dict[int, Candidate] = {}

    def perceptron(rank: int) -> Candidate:
        if rank not in trained:
            found = attempt(train_perceptron(samples.train, rank, recipe, seed).quantised())
            assert found is not None
            trained[rank] = found
        return trained[rank]

    if target.rank is not None:
        return [_chosen(perceptron(target.rank))]
    attempt(Predictor.none(hidden, neurons))
    for weight_format in LOW_BITS:
        attempt(few_bits(gates, weight_format))
    ranks = ladder(hidden, neurons)
    share = float((bits > 0).float().mean())
    at = _start(ranks, hidden, share)
    attempt(factors(gates, samples.train, ranks[at], seed).quantised())
    best = perceptron(ranks[at])
    if best.reaches(target):
        while at > 0 and best.reaches(target):
            at -= 1
            best = perceptron(ranks[at])
    else:
        before = best
        while at + 1 < len(ranks) and not best.reaches(target):
            at += 1
            best = perceptron(ranks[at])
            if best.quality.named >= before.quality.named:
                break  # more would not help
            before = best
    chosen = _best(tried, target)
    return [_chosen(chosen), *(candidate for candidate in tried if candidate is not chosen)]


def allocate(
    source_digest: str, layers: Sequence[Sequence[Candidate]], target: Target, budget: int | None
) -> PredictorSet:
    """One candidate for each layer: the chosen ones, or where the budget does not allow those, what reads fewest bytes.

    Within the budget, bytes of predictors cost a common price on top of what a token reads, the lowest price at which
    the whole fits (a Lagrangian relaxation: within one candidate's size of the best choice).

    Raises:
        UserError: not even the smallest candidates fit.
    """
    chosen = [candidates[0] for candidates in layers]
    if budget is not None and _size(chosen) > budget:
        smallest = [min(candidates, key=lambda c: c.trial.nbytes) for candidates in layers]
        if _size(smallest) > budget:
            raise UserError(
                f"predictors of {format_size(budget)} are asked for, and the smallest that were tried take "
                f"{format_size(_size(smallest))}; allow more with --predictor-bytes"
            )
        low, high = 0.0, 1.0
        while _size(_at_price(layers, target, high)) > budget:
            high *= 2
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if _size(_at_price(layers, target, middle)) <= budget else (middle, high)
        chosen = _at_price(layers, target, high)
    trials = [
        tuple(replace(c.trial, chosen=c is picked) for c in sorted(candidates, key=lambda c: c.trial.nbytes))
        for candidates, picked in zip(layers, chosen, strict=True)
    ]
    return PredictorSet(
        source_digest, tuple(c.predictor for c in chosen), tuple(c.quality for c in chosen), tuple(trials)
    )


def ladder(hidden: int, neurons: int) -> list[int]:
    """The ranks that are tried: blocks of 32, each about a third or a half more than the one before, up to half the
    width, and no more than a matrix of the gates' own size would take.
    """
    most = max(STEP, min(hidden // 2, hidden * neurons // (2 * (hidden + neurons))))
    ranks, rank = [STEP], STEP
    while (rank := max(rank + STEP, round(rank * 4 / 3 / STEP) * STEP)) <= most:
        ranks.append(rank)
    return ranks


def _start(ranks: Sequence[int], hidden: int, active: float) -> int:
    """Where the search begins: a quarter of the width, a sixth in sparse layers."""
    guess = hidden / (6 if active < SPARSE else 4)
    return min(range(len(ranks)), key=lambda i: abs(ranks[i] - guess))


def _calibrated(predictor: Predictor, split: Split, recipe: Recipe) -> Predictor:
    if predictor.family == "none":
        return predictor
    return replace(predictor, threshold=calibrate(predictor, split, recipe.keep))


def _judge(predictor: Predictor, samples: LayerSamples, recipe: Recipe, target: Target) -> Candidate:
    quality = measure(predictor, samples.test)
    finished = quality.active * quality.recall
    rows = predictor.neurons * target.vector_bytes * (quality.named + (target.parts - 1) * finished)
    trial = Trial(
        family=predictor.family,
        rank=predictor.rank,
        weight_formats=predictor.weight_formats,
        nbytes=predictor.nbytes,
        mass_at_active=quality.mass_recall if predictor.fc2 is None else mass_at_active(predictor, samples.test),
        named_at_keep=quality.named,
        bytes_per_token=predictor.nbytes + rows,
    )
    return Candidate(predictor, quality, trial)


def _best(tried: Sequence[Candidate], target: Target) -> Candidate:
    """The smallest predictor that reaches the target, or none at all where gating reads fewer bytes than it."""
    predicting = [c for c in tried if c.predictor.family != "none"]
    reaching = [c for c in predicting if c.reaches(target)]
    if reaching:
        best = min(reaching, key=lambda c: c.trial.nbytes)
    else:
        best = min(predicting, key=lambda c: c.trial.bytes_per_token)
    return min([best, *(c for c in tried if c.predictor.family == "none")], key=lambda c: c.trial.bytes_per_token)


def _at_price(layers: Sequence[Sequence[Candidate]], target: Target, price: float) -> list[Candidate]:
    return [min(tried, key=lambda c: c.trial.bytes_per_token + price * c.trial.nbytes) for tried in layers]


def _size(candidates: Sequence[Candidate]) -> int:
    return sum(c.trial.nbytes for c in candidates)


def _chosen(candidate: Candidate) -> Candidate:
    return replace(candidate, trial=replace(candidate.trial, chosen=True))
