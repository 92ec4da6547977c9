"""The choice of a layer's predictor: the smallest that reaches a target, and within a budget for all layers together.

Every candidate is calibrated on tokens that it was not trained on, and judged on others by the bytes that a token then
reads: the predictor's own, the gates of named rows, and the rest of the rows that are active too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from profiler.artifacts import UserError, format_size
from profiler.capture import LayerSamples, Split
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import EVERYTHING, NOTHING, PredictorQuality, Trial
from profiler.training import (
    Recipe,
    calibrate,
    check_samples,
    mass_at_active,
    measure,
    train_perceptron,
    tune_factors,
)
from profiler.training_free import Gates, factors, few_bits, truncated

LOW_BITS = ("b1", "q4_0")
PARTS = 4096  # of a budget, which it is counted in
STEP = 32  # ranks are whole blocks


@dataclass(frozen=True)
class Target:
    """What a predictor is to reach.

    most_named: neurons that it may name over those that are active, when it keeps what the recipe says. rank: the one
    rank to train, None for a search. perceptrons: try those too, trained from random weights. vector_bytes and parts:
    of the rows that it names, `parts` vectors each.
    """

    vector_bytes: int
    parts: int
    most_named: float = 1.0
    rank: int | None = None
    perceptrons: bool = False

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
    gates: Gates | None,
    recipe: Recipe,
    target: Target,
    seed: int,
    on_trial: Callable[[Trial], None] | None = None,
    ahead: LayerSamples | None = None,
) -> list[Candidate]:
    """What was tried for one layer, the chosen one first.

    No predictor, and the gates in few bits; products of low rank of the gates, untrained, up the ladder of ranks until
    one reaches the target; then trained ones, down the ladder from there as long as they reach it. So the rank follows
    from the layer's own sparsity and skew. Where asked for, perceptrons trained from random weights go on downwards.
    Without `gates` (a state that does not decide them) only perceptrons, upwards from the lowest rank. A layer in which
    nothing was active gets a predictor that names nothing; one in which everything always was, none. `on_trial` is told
    of each. `ahead`: the same tokens with what the FFN of the layer before read, which predictors are to read then.

    Raises:
        UserError: too few tokens, or values that are not finite; see `check_samples`.
    """
    check_samples(samples)
    decides, samples = (None, samples) if ahead is None else (samples.train.hidden, ahead)
    bits = samples.train.magnitude.view(torch.uint8)
    hidden, neurons = samples.train.hidden.shape[1], samples.train.magnitude.shape[1]
    tell, tried = on_trial or (lambda trial: None), list[Candidate]()

    def attempt(predictor: Predictor) -> Candidate:
        if ahead is not None and predictor.fc2 is not None:
            predictor = replace(predictor, reads="previous_ffn_input")
        calibrated = _calibrated(predictor.quantised(), samples.calibration, recipe)
        tried.append(_judge(calibrated, samples, recipe, target))
        tell(tried[-1].trial)
        return tried[-1]

    if not bits.any() or bits.all():
        attempt(Predictor.none(hidden, neurons, EVERYTHING if bits.any() else NOTHING))
    elif target.rank is not None:
        near = None if gates is None else factors(gates, samples.train, target.rank, seed, decides)
        attempt(_trained(near, samples.train, target.rank, recipe, seed))
    else:
        attempt(Predictor.none(hidden, neurons))
        ranks = ladder(hidden, neurons)
        if gates is None:
            for rank in ranks:
                if attempt(train_perceptron(samples.train, rank, recipe, seed)).reaches(target):
                    break
        else:
            _around_gates(samples.train, decides, gates, ranks, recipe, target, seed, attempt)
    chosen = _best(tried, target)
    rest = [candidate for candidate in tried if candidate is not chosen]
    return [replace(chosen, trial=replace(chosen.trial, chosen=True)), *rest]


def _around_gates(
    train: Split,
    decides: torch.Tensor | None,
    gates: Gates,
    ranks: Sequence[int],
    recipe: Recipe,
    target: Target,
    seed: int,
    attempt: Callable[[Predictor], Candidate],
) -> None:
    """The families that the gates' own matrix gives, and training from there; see `search`."""
    for weight_format in LOW_BITS if decides is None else ():  # the gates themselves need their own state
        few = few_bits(gates, weight_format)
        if few is not None:
            attempt(few)
    most = factors(gates, train, ranks[-1], seed, decides)
    at = next((i for i, rank in enumerate(ranks) if attempt(truncated(most, rank)).reaches(target)), len(ranks) - 1)
    while at >= 0 and attempt(tune_factors(truncated(most, ranks[at]), train, recipe, seed)).reaches(target):
        at -= 1
    while target.perceptrons and at >= 0:
        if not attempt(train_perceptron(train, ranks[at], recipe, seed)).reaches(target):
            break
        at -= 1


def _trained(near: Predictor | None, train: Split, rank: int, recipe: Recipe, seed: int) -> Predictor:
    return train_perceptron(train, rank, recipe, seed) if near is None else tune_factors(near, train, recipe, seed)


def allocate(source_digest: str, layers: Sequence[Sequence[Candidate]], budget: int | None) -> PredictorSet:
    """One candidate for each layer: the chosen ones, or within a budget whatever names fewest neurons for it.

    Of all choices within the budget, the one that names fewest neurons to keep the wanted mass: a knapsack, solved
    exactly but for sizes, which are rounded up to a `PARTS`th of the budget.

    Raises:
        UserError: not even the smallest candidates fit.
    """
    chosen = [candidates[0] for candidates in layers]
    if budget is not None:
        predicting = [[c for c in tried if c.predictor.family != "none"] or tried for tried in layers]
        least = sum(min(c.trial.nbytes for c in tried) for tried in predicting)
        if least > budget:
            raise UserError(
                f"predictors of {format_size(budget)} are asked for, and the smallest that were tried take "
                f"{format_size(least)}; allow more with --predictor-bytes"
            )
        chosen = _knapsack(predicting, budget)
    trials = [
        tuple(replace(c.trial, chosen=c is picked) for c in sorted(candidates, key=lambda c: c.trial.nbytes))
        for candidates, picked in zip(layers, chosen, strict=True)
    ]
    return PredictorSet(
        source_digest, tuple(c.predictor for c in chosen), tuple(c.quality for c in chosen), tuple(trials)
    )


def _knapsack(layers: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """Of each layer the candidate of the choice that names fewest neurons and takes at most `budget` bytes."""
    parts = min(PARTS, budget)
    best = np.zeros(parts + 1)  # fewest named neurons of the layers so far, by parts of the budget that may be used
    picks = np.zeros((len(layers), parts + 1), dtype=np.int64)
    sizes = [[-(-c.trial.nbytes * parts // budget) for c in tried] for tried in layers]
    for i, tried in enumerate(layers):
        with_each = np.full((len(tried), parts + 1), np.inf)
        for k, (candidate, size) in enumerate(zip(tried, sizes[i], strict=True)):
            if size <= parts:
                with_each[k, size:] = best[: parts + 1 - size] + candidate.trial.named_at_keep
        picks[i], best = with_each.argmin(0), with_each.min(0)
    if not np.isfinite(best[-1]):  # by less than the rounding
        return [min(tried, key=lambda c: c.trial.nbytes) for tried in layers]
    room, found = parts, []
    for i in reversed(range(len(layers))):
        pick = int(picks[i, room])
        found.append(layers[i][pick])
        room -= sizes[i][pick]
    return found[::-1]


def ladder(hidden: int, neurons: int) -> list[int]:
    """The ranks that are tried: blocks of 32, each about a third or a half more than the one before, up to half the
    width, and no more than a matrix of the gates' own size would take.
    """
    most = max(STEP, min(hidden // 2, hidden * neurons // (2 * (hidden + neurons))))
    ranks, rank = [STEP], STEP
    while (rank := max(rank + STEP, round(rank * 4 / 3 / STEP) * STEP)) <= most:
        ranks.append(rank)
    return ranks


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
    elif predicting:
        best = min(predicting, key=lambda c: c.trial.bytes_per_token)
    else:
        return tried[0]
    return min([best, *(c for c in tried if c.predictor.family == "none")], key=lambda c: c.trial.bytes_per_token)
