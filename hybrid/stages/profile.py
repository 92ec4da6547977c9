"""`hybrid profile`: which neurons fire on a text, predictors that say so beforehand, and the hottest rows first.

Two passes over the text through the engine's own dense path: the first collects samples that predictors are trained
on, the second counts what fires and what the predictors name. Files are written last, each atomically, in an order in
which a kill leaves a directory that works: predictors, profile (both by neuron id), then the rows of each layer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.spec import ModelSpec
from hybrid.stages.texts import Corpus, Window
from hybrid.store.directory import ModelDirectory
from hybrid.store.neurons import LayerRows
from hybrid.store.rows import Ids
from profiler.artifacts import UserError, directory_lock, explain_os_errors, remove_stale_partials
from profiler.capture import Capture, CaptureLimits
from profiler.formats import vector_bytes
from profiler.matrix import Matrix
from profiler.predictor import PredictorQuality, PredictorSet
from profiler.predictor_file import write_predictors
from profiler.profile import Profile, write_profile
from profiler.recorder import Recorder
from profiler.selection import Candidate, Target, allocate, search
from profiler.tap import Tap
from profiler.training import Recipe
from profiler.training_free import Gates

Progress = Callable[[str, int, int], None]
PROFILE_CONTEXT = 2048  # tokens of one window; the model's own context where that is shorter


@dataclass(frozen=True)
class ProfileSettings:
    """name: of the profile in the directory. tokens: of the text, None for all. rank: of the predictors, None to search
    one for each layer. predictor_bytes: of all of them at most. steps: of training. memory: bytes for samples. keep:
    share of activation mass that predictors keep.
    """

    name: str = "default"
    tokens: int | None = None
    rank: int | None = None
    predictor_bytes: int | None = None
    steps: int = 1500
    memory: int = 1 << 30
    seed: int = 0
    keep: float = 0.99

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise UserError(f"{self.name!r} is no name: use letters, digits, dots, dashes and underscores")
        if not 0.5 <= self.keep < 1:
            raise UserError(f"a share of {self.keep} of the activation mass is out of range: 0.5 to 1")


@dataclass(frozen=True)
class LayerReport:
    """One layer: what its predictor does on tokens kept apart, and the share of neurons behind 80 % of activations."""

    quality: PredictorQuality
    hot_share: float


@dataclass(frozen=True)
class ProfileReport:
    """What was profiled and written."""

    path: Path
    tokens: int
    ranks: list[int]
    predictor_bytes: int
    layers: list[LayerReport]
    removed: list[Path]


def profile(
    path: Path, texts: Sequence[Path], settings: ProfileSettings, progress: Progress | None = None
) -> ProfileReport:
    """Profile a model directory on texts; see the module. The directory works throughout, and after a kill.

    Raises:
        UserError: a text that is none, too little of it, a directory that cannot be written or is being written.
    """
    tell = progress or (lambda stage, done, total: None)
    with directory_lock(path, "profile"):
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot profile: {path} cannot be written; work on a copy of your own")
        removed = remove_stale_partials(path)
        directory = ModelDirectory.open(path)
        spec = directory.spec
        context = min(spec.max_positions, PROFILE_CONTEXT)
        with Engine(directory, EngineOptions(mode="dense", context=context)) as engine:
            corpus = Corpus.open(texts, engine.tokenizer, path)
            windows = choose_windows(corpus, engine.context, settings.tokens)
            pieces = [window.ids for window in windows]
            seen = {window.document: window.source.digest for window in windows}
            orders = [directory.layer(i).neuron_ids for i in range(spec.n_layers)]
            lengths = [len(piece) for piece in pieces]
            limits = CaptureLimits(memory=settings.memory)
            shape = (spec.n_layers, spec.hidden_size, spec.n_neurons)
            capture = Capture(lengths, *shape, limits, settings.seed, orders)
            run_through(engine, pieces, capture, "sampling", tell)
            predictors = train(capture, directory, settings, tell)
            recorder = Recorder(spec.n_layers, spec.n_neurons, orders)
            run_through(engine, pieces, Naming(recorder, predictors, orders), "counting", tell)
        counted = recorder.to_profile(
            directory.source_digest, corpus.digest(), [0.0] * spec.n_layers, True, seen.values()
        )
        write(directory, counted, predictors, settings.name, tell)
    layers = [LayerReport(quality, hot_share(counted, i)) for i, quality in enumerate(predictors.quality)]
    return ProfileReport(path, counted.tokens, [p.rank for p in predictors.layers], predictors.nbytes, layers, removed)


class Naming:
    """A tap before a recorder: adds what the trained predictors name, from the same states."""

    def __init__(self, recorder: Recorder, predictors: PredictorSet, orders: Sequence[Ids]) -> None:
        self._recorder, self._predictors = recorder, predictors
        self._orders = [torch.from_numpy(ids).long() for ids in orders]

    def document(self) -> None:
        """See `profiler.tap.Tap`."""
        self._recorder.document()

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """See `profiler.tap.Tap`."""
        by_id = self._predictors.layers[layer].named(hidden)
        self._recorder.ffn(layer, hidden, activation, by_id[:, self._orders[layer]])


def choose_windows(corpus: Corpus, longest: int, tokens: int | None) -> list[Window]:
    """The texts in windows; short texts in shorter ones, so that there are enough to keep some apart."""
    wanted = sum(len(window.ids) for window in corpus.windows(longest, tokens))
    return list(corpus.windows(max(16, min(longest, wanted // 16)), tokens))


def run_through(engine: Engine, pieces: Sequence[Sequence[int]], tap: Tap, stage: str, tell: Progress) -> None:
    """Pass windows through the model, shown to a tap."""
    for done, piece in enumerate(pieces):
        tap.document()
        engine.hidden_states(piece, tap=tap)
        tell(stage, done + 1, len(pieces))


def train(capture: Capture, directory: ModelDirectory, settings: ProfileSettings, tell: Progress) -> PredictorSet:
    """A predictor for each layer."""
    spec = directory.spec
    recipe = Recipe(keep=settings.keep, steps=settings.steps)
    target = Target(vector_bytes(directory.weight_format, spec.hidden_size), len(spec.row_parts), rank=settings.rank)
    found: list[list[Candidate]] = []
    for layer in range(spec.n_layers):
        gates = gates_of(directory.layer(layer), spec)
        found.append(search(capture.samples(layer), gates, recipe, target, settings.seed))
        tell("training predictors", layer + 1, spec.n_layers)
    return allocate(directory.source_digest, found, settings.predictor_bytes)


def gates_of(layer: LayerRows, spec: ModelSpec) -> Gates:
    """What decides whether a layer's neurons are active, by neuron id: the first vector of each row, and its bias."""
    order = torch.from_numpy(np.argsort(layer.neuron_ids))
    width = vector_bytes(layer.weight_format, spec.hidden_size) // layer.rows.element_size()
    first = Matrix(layer.rows[:, :width], layer.weight_format, spec.hidden_size).widened(order)
    return Gates(first, None if layer.bias is None else layer.bias[order].clone())


def write(directory: ModelDirectory, counted: Profile, predictors: PredictorSet, name: str, tell: Progress) -> None:
    """Predictors, profile, rows: each file atomically, and every state between them is valid."""
    for target in (directory.predictors_path(name), directory.profile_path(name)):
        with explain_os_errors("write a profile", directory.path):
            target.parent.mkdir(exist_ok=True)
    write_predictors(directory.predictors_path(name), predictors)
    write_profile(directory.profile_path(name), counted)
    for layer in range(directory.spec.n_layers):
        directory.reorder_layer(layer, counted.hottest_first(layer))
        tell("reordering rows", layer + 1, directory.spec.n_layers)


def hot_share(counted: Profile, layer: int, carried: float = 0.8) -> float:
    """Share of a layer's neurons, hottest first, that gives so much of its activations; 0 where nothing is active."""
    counts = np.sort(counted.active[layer])[::-1].cumsum()
    if not counts[-1]:
        return 0.0
    return float((np.searchsorted(counts, carried * counts[-1]) + 1) / counted.neurons)
