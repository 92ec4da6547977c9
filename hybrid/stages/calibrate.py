"""`hybrid calibrate`: the cutoff of each layer's activations that leaves a wanted share of them inactive, checked.

One pass over the text through the engine's own dense path. Part of it sets the cutoffs (CATS, Lee et al. 2024, section
4.1: a percentile of |act(gate)| for each layer); the rest, other documents where there are any, says what is left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.text_files import Note
from hybrid.stages.texts import Corpus, Window, digest_text
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, explain_os_errors, only_writer
from profiler.curve import Curve, LogBins, cutoffs_for
from profiler.thresholds import LayerThreshold, Thresholds, write_thresholds

Progress = Callable[[str, int, int], None]
CONTEXT = 2048  # tokens of one window at most; the model's own context where that is shorter
FEWEST_WINDOWS = 20  # of a short text, whose windows are shorter
HELD_OUT = 0.2  # of the tokens
LARGEST_PART = 1 / 20  # of the tokens, of one document; a longer one is parted
BYTES_PER_TOKEN = 4  # about, of text


@dataclass(frozen=True)
class CalibrateSettings:
    """name: of the thresholds in the directory. sparsity: share of each layer's activations to leave out. tokens: of
    the text at most, those that check included.
    """

    name: str = "default"
    sparsity: float = 0.5
    tokens: int = 100_000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", self.name):
            raise UserError(f"{self.name!r} is no name: use letters, digits, dots, dashes and underscores")
        if not 0 <= self.sparsity < 1:
            raise UserError(f"a sparsity of {self.sparsity} is out of range: it is a share, from 0 to less than 1")
        if self.tokens < 1:
            raise UserError(f"{self.tokens} tokens are none to calibrate on")


@dataclass(frozen=True)
class CalibrationReport:
    """The thresholds and the file that they were written to."""

    path: Path
    thresholds: Thresholds


class GateCurves:
    """A tap that sorts |act(gate)| of each layer into curves, with |act(gate) · up|; see `profiler.tap.GateTap`.

    Tokens go to `setting`, or to `checking` while `held_out`. Half a MiB for each of a layer's two curves, whatever the
    length of the text.
    """

    def __init__(self, layers: int) -> None:
        self.setting = [Curve(LogBins()) for _ in range(layers)]
        self.checking = [Curve(LogBins()) for _ in range(layers)]
        self.held_out = False
        self._gate: torch.Tensor | None = None

    def document(self) -> None:
        """Nothing: every token counts by itself."""

    def gate(self, layer: int, values: torch.Tensor) -> None:
        """Remember what the activation function gave until the activations come."""
        self._gate = values

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """Count the next tokens of a layer."""
        assert self._gate is not None, "gates come before activations"
        curves = self.checking if self.held_out else self.setting
        try:
            curves[layer].add(self._gate.abs(), activation.abs())
        except UserError as error:
            raise UserError(f"layer {layer}: {error}") from error
        self._gate = None


class HoldOut:
    """Decides window by window which of them check: whole documents, or parts of long ones, until they have a fifth.

    Args:
        tokens: about how many there will be.

    """

    def __init__(self, tokens: int) -> None:
        self.setting = self.checking = 0  # tokens so far
        self._longest = max(1.0, tokens * LARGEST_PART)
        self._document, self._length, self._held = -1, 0.0, False

    def next(self, document: int, tokens: int) -> bool:
        """Whether the next window, of that document, is held out."""
        if document != self._document or self._length >= self._longest:
            self._document, self._length = document, 0
            self._held = self.checking < HELD_OUT * (self.setting + self.checking)
        self._length += tokens
        if self._held:
            self.checking += tokens
        else:
            self.setting += tokens
        return self._held


@dataclass(frozen=True, eq=False)
class Collected:
    """The curves of a text's beginning. setting, checking: the tokens that set cutoffs, and those held out. documents:
    digests of those that it is of; see `digest_text`.
    """

    curves: GateCurves
    setting: int
    checking: int
    documents: frozenset[str]


def calibrate(
    path: Path, texts: Sequence[Path], settings: CalibrateSettings, progress: Progress | None = None,
    note: Note = lambda line: None,
) -> CalibrationReport:  # fmt: skip
    """Calibrate thresholds for a model directory on texts, and write them into it.

    Raises:
        UserError: a text that is none, too little of it, activations that are not finite numbers, a directory that
            cannot be written or is being written.
    """
    tell = progress or (lambda stage, done, total: None)
    with ModelDirectory.open(path) as directory:
        context, source = min(directory.spec.max_positions, CONTEXT), directory.source_digest
        target = directory.thresholds_path(settings.name)
        with Engine(directory, EngineOptions(mode="dense", context=context)) as engine:
            corpus = Corpus.open(texts, engine.tokenizer, path, note)
            digest = corpus.digest()
            found = collect(engine, corpus, settings.tokens, tell)
    if not found.checking:
        raise UserError("the text is too short to check thresholds on a part of its own: give a longer one")
    thresholds = Thresholds(
        source_digest=source,
        text_digest=digest,
        tokens=found.setting,
        heldout_tokens=found.checking,
        layers=layer_thresholds(found.curves, cutoffs_for(found.curves.setting, settings.sparsity)),
        sparsity=settings.sparsity,
        documents=tuple(sorted(found.documents)),
    )
    store(path, target, thresholds)
    return CalibrationReport(target, thresholds)


def collect(engine: Engine, corpus: Corpus, tokens: int, tell: Progress) -> Collected:
    """The curves of a text's beginning, in one pass of the engine in mode dense."""
    curves, passed = GateCurves(engine.directory.spec.n_layers), {False: 0, True: 0}
    documents, latest = set[str](), None
    for window, held_out in parted(corpus, engine.context, tokens, "calibrating", tell):
        if window.source is not latest:
            latest = window.source
            documents.add(digest_text(latest.digest))
        curves.held_out = held_out
        engine.hidden_states(window.ids, tap=curves)
        passed[held_out] += len(window.ids)
    return Collected(curves, passed[False], passed[True], frozenset(documents))


def parted(corpus: Corpus, context: int, tokens: int, stage: str, tell: Progress) -> Iterator[tuple[Window, bool]]:
    """The windows of a text's first `tokens` tokens, each with whether it is held out; see `HoldOut`.

    They fill the context, or are shorter where the text is short. `tell` hears of each when the next is asked for.
    """
    expected = min(tokens, max(1, corpus.bytes // BYTES_PER_TOKEN))
    longest = max(2, min(context, max(16, expected // FEWEST_WINDOWS)))
    split = HoldOut(expected)
    for window in corpus.windows(longest, tokens):
        yield window, split.next(window.document, len(window.ids))
        done = split.setting + split.checking
        tell(stage, done, max(done, expected))


def layer_thresholds(curves: GateCurves, cutoffs: Sequence[float]) -> tuple[LayerThreshold, ...]:
    """Cutoffs with what they leave of the text that did not set them."""
    kept = [curve.kept(cutoff) for curve, cutoff in zip(curves.checking, cutoffs, strict=True)]
    return tuple(LayerThreshold(cutoff, k.share, k.mass) for cutoff, k in zip(cutoffs, kept, strict=True))


def store(path: Path, target: Path, thresholds: Thresholds) -> None:
    """Write thresholds into a model directory, atomically and alone.

    Raises:
        UserError: it cannot be written, or another process writes it.
    """
    with only_writer(path, "write thresholds"):
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot write thresholds: {path} cannot be written; work on a copy of your own")
        with explain_os_errors("write thresholds", path):
            target.parent.mkdir(exist_ok=True)
        write_thresholds(target, thresholds)
