"""Thresholds within a budget of perplexity: found on a text kept for that, and stored with the model.

Of mode predicted the thresholds of the predictors' logits, of mode threshold the cutoffs of activations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hybrid.runtime.engine import Engine
from hybrid.stages.calibrate import collect, layer_thresholds, store
from hybrid.stages.finding import find_outlines
from hybrid.stages.model_predictors import find_predictors
from hybrid.stages.opening import open_engine, resolve
from hybrid.stages.price_search import BudgetSearch, Knob, Trier, price_knob, search, share_knob
from hybrid.stages.quality import Passage, Source, measure, parts_of, read_passages
from hybrid.stages.texts import Corpus, digest_text
from profiler.artifacts import UserError, explain_os_errors, only_writer, sha256_file
from profiler.curve import Curve
from profiler.naming import LogitCurves, NamedCounts
from profiler.predictor import PredictorSet
from profiler.predictor_file import write_predictors
from profiler.profile import read_profile, write_profile
from profiler.quality import LayerQuality
from profiler.thresholds import LARGEST_CUTOFF, Thresholds
from profiler.training import predictor_quality

Progress = Callable[[str, int, int], None]
TOKENS = 50_000
Allocation = Literal["price", "share"]


@dataclass(frozen=True)
class BudgetSettings:
    """budget: perplexity that may be lost, as a share of dense: 0.001 for a tenth of a percent. mode: predicted or
    threshold, whose thresholds; None takes predicted where there are predictors.

    name: of the profile whose predictors are used, or of the thresholds that are written. tokens: of the text.
    least_mass: share of the activation mass that every layer keeps. allocation: of neurons to layers, by a common price
    for their mass or by the same share of each layer; None takes prices for predictors, and shares for cutoffs, which
    lose less so (`scripts/bench_budgets.py`).
    """

    budget: float
    mode: str | None = None
    name: str = "default"
    tokens: int = TOKENS
    least_mass: float = 0.0
    allocation: Allocation | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise UserError(f"a budget of {self.budget:%} of perplexity is out of range; give one such as 0.1%")
        if self.mode not in (None, "predicted", "threshold"):
            raise UserError(f"mode {self.mode} has no thresholds; modes predicted and threshold have")
        if not 0 <= self.least_mass < 1:
            raise UserError(f"a share of {self.least_mass} of the activation mass is out of range: 0 to less than 1")
        if self.tokens < 1:
            raise UserError(f"{self.tokens} tokens are none to search on")


@dataclass(frozen=True)
class BudgetReport:
    """What was found on `tokens` predicted tokens, and the file that it was written to; layers as measured with it."""

    path: Path
    mode: str
    tokens: int
    search: BudgetSearch
    layers: tuple[LayerQuality, ...]


def parse_budget(text: str) -> float:
    """A share of perplexity as people write it: `0.1%` or `0.001`.

    Raises:
        UserError: it is no such number.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise UserError(f"{text!r} is no budget; write one as 0.1%") from None
    if not 0 < value <= 1:
        raise UserError(f"a budget of {text} is out of range; give one such as 0.1%")
    return value


def fit(
    path: str | Path, texts: Sequence[Path], settings: BudgetSettings, progress: Progress | None = None
) -> BudgetReport:
    """Search, and store what was found.

    Raises:
        UserError: no predictors; a text that is none or too short; no thresholds within the budget; a directory that
            cannot be written.
    """
    tell = progress or (lambda stage, done, total: None)
    model = resolve(path)
    with contextlib.ExitStack() as stack:
        dense = stack.enter_context(open_engine(model, mode="dense", threads=settings.threads))
        corpus = Corpus.open(texts, dense.tokenizer, model)
        passages, sources = read_passages(corpus, dense.context, settings.tokens)
        parts = parts_of(passages)
        reference = measure([dense], passages, lambda done, total: tell("dense", done, total))[0]
        mode = settings.mode or ("predicted" if find_outlines(dense.directory, settings.name) else "threshold")
        given = Given(model, dense, corpus, passages, sources, settings, tell)
        fitted = stack.enter_context((_predicted if mode == "predicted" else _threshold)(given))
        trier = Trier(
            fitted.curves,
            lambda thresholds: measure([fitted.set(thresholds)], passages)[0],
            reference,
            passages,
            parts,
        )
        found = search(trier, fitted.knob, settings.budget, tell)
        tally = NamedCounts(dense.directory.spec.n_layers, dense.directory.spec.n_neurons)
        engine = fitted.set(found.found.thresholds)
        for done, passage in enumerate(passages):
            engine.hidden_states(passage.ids, tap=tally)
            tell("layers", done + 1, len(passages))
        target = fitted.store(found, tally)
    tokens = sum(passage.predicted for passage in passages)
    return BudgetReport(target, mode, tokens, found, tally.quality())


@dataclass(frozen=True, eq=False)
class Given:
    """What a search is given: the model at `path`, opened as `dense`, and the passages at the corpus's beginning, which
    are of the documents `sources`.
    """

    path: Path
    dense: Engine
    corpus: Corpus
    passages: Sequence[Passage]
    sources: Sequence[Source]
    settings: BudgetSettings
    tell: Progress


@dataclass(frozen=True)
class Fitted:
    """One mode's part of a search. set: the engine with thresholds; store: writes what was found, tells the file."""

    curves: Sequence[Curve | None]
    knob: Knob
    set: Callable[[Sequence[float]], Engine]
    store: Callable[[BudgetSearch, NamedCounts], Path]


def _knob(curves: Sequence[Curve | None], settings: BudgetSettings, usual: Allocation) -> Knob:
    by_price = (settings.allocation or usual) == "price"
    return price_knob(curves, settings.least_mass) if by_price else share_knob(curves)


@contextlib.contextmanager
def _predicted(given: Given) -> Iterator[Fitted]:
    directory, settings = given.dense.directory, given.settings
    predictors = find_predictors(directory, settings.name)
    if predictors is None:
        raise UserError(f"{given.path} has no predictors; make them with: hybrid profile {given.path} --text FILE")
    with open_engine(given.path, mode="predicted", profile=settings.name, threads=settings.threads) as engine:
        tap = LogitCurves(predictors.layers, [directory.neuron_ids(i) for i in range(directory.spec.n_layers)])
        for done, passage in enumerate(given.passages):
            engine.hidden_states(passage.ids, tap=tap)
            given.tell("calibrating", done + 1, len(given.passages))

        def set_thresholds(thresholds: Sequence[float]) -> Engine:
            engine.set_thresholds(tuple(thresholds))
            return engine

        def write(found: BudgetSearch, tally: NamedCounts) -> Path:
            return _write_predictors(given, predictors, found, tally)

        yield Fitted(tap.curves, _knob(tap.curves, settings, "price"), set_thresholds, write)


@contextlib.contextmanager
def _threshold(given: Given) -> Iterator[Fitted]:
    directory, settings = given.dense.directory, given.settings
    collected = collect(given.dense, given.corpus, settings.tokens, given.tell)
    none = (0.0,) * directory.spec.n_layers
    with open_engine(given.path, mode="threshold", cutoffs=none, threads=settings.threads) as engine:

        def set_cutoffs(thresholds: Sequence[float]) -> Engine:
            engine.set_cutoffs(as_cutoffs(thresholds))
            return engine

        def write(found: BudgetSearch, tally: NamedCounts) -> Path:
            target = directory.thresholds_path(settings.name)
            layers = layer_thresholds(collected.curves, as_cutoffs(found.found.thresholds))
            thresholds = Thresholds(
                directory.source_digest,
                given.corpus.digest(),
                collected.setting,
                max(1, collected.checking),
                layers,
                budget=settings.budget,
                documents=tuple(sorted(collected.documents.union(digest_text(one.digest) for one in given.sources))),
            )
            store(given.path, target, thresholds)
            return target

        curves = collected.curves.setting
        yield Fitted(curves, _knob(curves, settings, "share"), set_cutoffs, write)


def as_cutoffs(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds of magnitudes as a layer takes them: finite, and not below zero."""
    return tuple(min(max(0.0, threshold), LARGEST_CUTOFF) for threshold in thresholds)


def _write_predictors(given: Given, predictors: PredictorSet, found: BudgetSearch, tally: NamedCounts) -> Path:
    """The predictors with their thresholds, and what they name now in the profile.

    Named counts are those of the text that was searched on, in proportion to the profile's tokens. Its documents join
    those that the profile has seen.
    """
    directory, name = given.dense.directory, given.settings.name
    path, quality = directory.predictors_path(name), tuple(map(predictor_quality, tally.quality()))
    fitted = replace(predictors.with_thresholds(found.found.thresholds), quality=quality)
    with only_writer(directory.path, "store thresholds"), explain_os_errors("store thresholds", directory.path):
        write_predictors(path, fitted)
        if directory.has_profile(name):
            profile = read_profile(directory.profile_path(name))
            by_id = np.zeros_like(tally.counts)
            for layer in range(directory.spec.n_layers):
                by_id[layer, directory.neuron_ids(layer)] = tally.counts[layer]
            named = np.rint(by_id * (profile.tokens / tally.tokens)).astype(np.int64)
            seen = np.array([source.digest for source in given.sources], dtype=np.uint64)
            counted = replace(
                profile,
                named=named,
                predictors_digest=sha256_file(path),
                documents=np.union1d(profile.documents, seen),
            )
            write_profile(directory.profile_path(name), counted)
    return path
