"""`hybrid import-predictors`: published predictors and counts, read into a model directory and measured on a text.

PowerInfer's predictors read the state before the FFN's norm and name a neuron where its logit is above 0. Both files
are written by neuron id, so rows may lie in any order; they are put hottest first only where that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hybrid.checkpoint.published import find_published, open_predictor, read_counts
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.calibrate import CONTEXT, parted
from hybrid.stages.import_conversion import FORMATS, Shares, convert, make_profile
from hybrid.stages.profile_results import make_folders, write_counts
from hybrid.stages.text_files import Note
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError, only_writer
from profiler.naming import LogitCurves, LogitTap, NamedCounts
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_file import write_predictors
from profiler.predictor_outline import PredictorQuality
from profiler.profile import Profile, write_profile
from profiler.training import predictor_quality

Progress = Callable[[str, int, int], None]
PUBLISHED_THRESHOLD = 0.0
UNMEASURED = PredictorQuality(0, 1, 1, 1, 1, 1)  # shares of nothing


@dataclass(frozen=True)
class ImportSettings:
    """name: of predictors and profile in the directory. weight_format: `keep` leaves 16-bit types as they are.

    keep: share of activation mass that thresholds are set to; None leaves the published ones. tokens: of the text at
    most. reorder: put rows hottest first by the published counts.
    """

    name: str = "published"
    weight_format: str = "keep"
    keep: float | None = None
    tokens: int = 100_000
    reorder: bool = False

    def __post_init__(self) -> None:
        if self.weight_format not in FORMATS:
            raise UserError(f"predictors are stored as {', '.join(FORMATS)}, not {self.weight_format!r}")
        if self.keep is not None and not 0 < self.keep < 1:
            raise UserError(f"a share of {self.keep} of the activation mass is out of range: it lies between 0 and 1")
        if self.tokens < 1:
            raise UserError(f"{self.tokens} tokens are none to measure on")


@dataclass(frozen=True)
class ImportedLayer:
    """One layer's predictor as it was written; quality is of 0 tokens where there was no text."""

    rank: int
    weight_formats: tuple[str, ...]
    threshold: float
    quality: PredictorQuality


@dataclass(frozen=True)
class ImportReport:
    """What was imported. calibrated_tokens: of the text, that set thresholds; 0 where they are the published ones.

    measured_tokens: those that quality was measured on. profile: of the counts, None where there were none;
    counted_tokens: the greatest count, which stands for the tokens that they are of, since their files do not say.
    """

    path: Path
    model: Path
    name: str
    reads: str
    nbytes: int
    layers: tuple[ImportedLayer, ...]
    calibrated_tokens: int
    measured_tokens: int
    profile: Path | None
    counted_tokens: int
    reordered: bool


@dataclass(frozen=True, eq=False)
class Measured:
    """Predictors at their thresholds, on a text. named: shares of tokens `[layers, neurons]`, by neuron id."""

    layers: tuple[Predictor, ...]
    quality: tuple[PredictorQuality, ...]
    named: Shares | None
    calibrated_tokens: int = 0
    tokens: int = 0


def import_predictors(
    path: Path,
    folder: Path,
    texts: Sequence[Path],
    settings: ImportSettings,
    progress: Progress | None = None,
    note: Note = lambda line: None,
) -> ImportReport:
    """Read a folder of published predictors into a model directory; with texts, measure them.

    Raises:
        UserError: files that are none, of another model or damaged; a text that is none; a directory that cannot be
            written or is being written.
    """
    tell = progress or (lambda stage, done, total: None)
    if settings.keep is not None and not texts:
        raise UserError("thresholds that keep a share of the activation mass are set on a text: add --text FILE")
    with ModelDirectory.open(path) as directory:
        spec, source = directory.spec, directory.source_digest
        target, counts_target = directory.predictors_path(settings.name), directory.profile_path(settings.name)
        files = find_published(folder, spec.n_layers)
        if settings.reorder and not files.counts:
            raise UserError(f"{folder} has no counts (activation_*.pt) that rows could be put in order by")
        counts = [read_counts(file, spec.n_neurons) for file in files.counts]
        if counts and not max(int(count.max()) for count in counts):
            raise UserError(f"the counts (activation_*.pt) in {folder} are all 0")
        corpus = Corpus.open(texts, load_tokenizer(path), path, note) if texts else None
        tensors = [open_predictor(file, spec.hidden_size, spec.n_neurons) for file in files.predictors]
        layers = []
        for fc1, fc2 in tensors:
            converted = (convert(fc1, settings.weight_format), convert(fc2, settings.weight_format))
            layers.append(Predictor.low_rank(*converted, PUBLISHED_THRESHOLD, reads="residual"))
            tell("reading predictors", len(layers), spec.n_layers)
        found = Measured(tuple(layers), (UNMEASURED,) * spec.n_layers, None)
        if corpus is not None:
            found = measure(directory, layers, corpus, settings, tell)
        profile = make_profile(source, np.stack(counts), found.named) if counts else None
        predictors = PredictorSet(source, found.layers, found.quality)
        store(directory, settings, predictors, profile, tell)
    return ImportReport(
        path=target,
        model=path,
        name=settings.name,
        reads=predictors.layers[0].reads,
        nbytes=predictors.nbytes,
        layers=tuple(
            ImportedLayer(p.rank, p.weight_formats, p.threshold, quality)
            for p, quality in zip(found.layers, found.quality, strict=True)
        ),
        calibrated_tokens=found.calibrated_tokens,
        measured_tokens=found.tokens,
        profile=counts_target if profile else None,
        counted_tokens=profile.tokens if profile else 0,
        reordered=settings.reorder,
    )


def measure(
    directory: ModelDirectory, layers: Sequence[Predictor], corpus: Corpus, settings: ImportSettings, tell: Progress
) -> Measured:
    """Predictors on a text that runs in dense mode. With `settings.keep`, four fifths of it set the thresholds first.

    Raises:
        UserError: too little text, or activations that are not finite numbers.
    """
    orders = [directory.layer(i).neuron_ids for i in range(len(layers))]
    with Engine(directory, EngineOptions("dense", context=min(directory.spec.max_positions, CONTEXT))) as engine:

        def show(tap: LogitTap, stage: str, held_out: tuple[bool, ...]) -> int:
            seen = 0
            for window, held in parted(corpus, engine.context, settings.tokens, stage, tell):
                if held in held_out:
                    engine.hidden_states(window.ids, tap=tap)
                    seen += len(window.ids)
            if not seen:
                raise UserError("the text is too short to measure predictors on: give a longer one")
            return seen

        calibrated = 0
        if settings.keep is not None:
            curves = LogitCurves(layers, orders)
            calibrated = show(curves, "setting thresholds", (False,))
            thresholds = curves.thresholds(settings.keep)
            layers = [replace(p, threshold=t) for p, t in zip(layers, thresholds, strict=True)]
        counts = NamedCounts(len(layers), directory.spec.n_neurons)

        def see(layer: int, logits: torch.Tensor, magnitude: torch.Tensor) -> None:
            counts.ffn(layer, logits, magnitude, logits > layers[layer].threshold)

        tap = LogitTap(layers, orders, see)
        tokens = show(tap, "measuring", (True,) if calibrated else (True, False))
    quality = tuple(map(predictor_quality, counts.quality()))
    return Measured(tuple(layers), quality, counts.counts / tokens, calibrated, tokens)


def store(
    directory: ModelDirectory,
    settings: ImportSettings,
    predictors: PredictorSet,
    profile: Profile | None,
    tell: Progress,
) -> None:
    """Write predictors, profile, and where asked for the rows, hottest first: every state between them is valid.

    Raises:
        UserError: the directory cannot be written, or another process writes it.
    """
    with only_writer(directory.path, "import predictors"):
        if not os.access(directory.path, os.W_OK):
            raise UserError(f"cannot import: {directory.path} cannot be written; work on a copy of your own")
        make_folders(directory, settings.name)
        write_predictors(directory.predictors_path(settings.name), predictors)
        if profile is not None and settings.reorder:
            write_counts(directory, profile, settings.name, tell)
        elif profile is not None:
            write_profile(directory.profile_path(settings.name), profile)
