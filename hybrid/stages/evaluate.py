"""`hybrid eval`: what each mode of a model costs on a text, against dense, through the engine that decodes.

Perplexity, agreement and divergence are of all of the text, by the operators and the placement that decoding uses. What
is named layer by layer is measured on passages at equal distances through it, whose activations torch computes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hybrid.runtime.engine import Engine
from hybrid.stages.finding import choose_mode, find_outlines, offered_modes
from hybrid.stages.opening import open_engine, resolve
from hybrid.stages.quality import (
    LARGEST_PART,
    Measured,
    Part,
    Passage,
    Source,
    measure,
    measure_layers,
    parts_of,
    predicted_tokens,
    read_passages,
    spread,
    sums,
)
from hybrid.stages.texts import Corpus, digest_text
from hybrid.stages.thresholds import find_thresholds, record_loss
from hybrid.store.directory import ModelDirectory
from hybrid.store.evaluation_file import (
    REFERENCE,
    EvaluatedDocument,
    EvaluatedText,
    Evaluation,
    ModeEvaluation,
    current_digests,
    write_evaluation,
)
from hybrid.store.files import ModelFiles
from placement.plan import Mode
from profiler.artifacts import UserError, explain_os_errors, only_writer
from profiler.bootstrap import FEWEST_DOCUMENTS
from profiler.profile import read_profile
from profiler.quality import LayerQuality
from profiler.thresholds import Loss

Progress = Callable[[str, int, int], None]
LAYER_TOKENS = 8192


@dataclass(frozen=True)
class EvaluationSettings:
    """name: of the evaluation in the directory. modes: None for all that the model offers; dense is always measured.

    profile: whose predictors are used. thresholds: the name of those of mode threshold. tokens: of the text, None for
    all. layer_tokens: of those that layers are measured on, about. The rest is as in `open_engine`.
    """

    name: str = "default"
    modes: tuple[str, ...] | None = None
    plan: str | None = None
    device: Literal["cpu", "cuda"] | None = None
    profile: str = "default"
    thresholds: str = "default"
    context: int | None = None
    kv_format: str = "f16"
    threads: int | None = None
    tokens: int | None = None
    layer_tokens: int = LAYER_TOKENS


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation, and where it was stored; None where it could not be, and its notes say why."""

    evaluation: Evaluation
    path: Path | None


def evaluate(
    path: str | Path, texts: Sequence[Path], settings: EvaluationSettings, progress: Progress | None = None
) -> EvaluationReport:
    """Measure modes on texts, and store what was found in the model directory.

    Raises:
        UserError: a mode, plan or text that is none; a text too short; output that is not finite.
    """
    tell = progress or (lambda stage, done, total: None)
    model = resolve(path)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(ModelDirectory.open(model))
        target = directory.evaluation_path(settings.name)
        modes = _modes(directory, settings)
        profile, thresholds = settings.profile if "predicted" in modes else None, None
        if "threshold" in modes:
            thresholds = settings.thresholds
        digests = current_digests(directory, profile, thresholds)
        engines = [stack.enter_context(_open(model, mode, settings)) for mode in modes]
        corpus = Corpus.open(texts, engines[0].tokenizer, model)
        passages, sources = read_passages(corpus, engines[0].context, settings.tokens)
        measured = measure(engines, passages, lambda done, total: tell("quality", done, total))
        sample = spread(passages, settings.layer_tokens)
        parts = parts_of(passages)
        evaluation = Evaluation(
            name=settings.name,
            digests=digests,
            profile=settings.profile,
            settings={
                **{name: getattr(settings, name) for name in ("plan", "device", "kv_format", "threads", "tokens")},
                "context": engines[0].context,
                "thresholds": thresholds,
            },
            text=EvaluatedText(
                tuple(map(str, texts)), corpus.digest(), len(sources), sum(passage.predicted for passage in passages)
            ),
            documents=_documents(parts, passages, sources),
            modes=tuple(
                _mode(engine, found, measured[0], passages, parts, _layers(engine, sample, tell))
                for engine, found in zip(engines, measured, strict=True)
            ),
            layer_tokens=sum(len(passage.ids) for passage in sample) if len(engines) > 1 else 0,
            notes=(*_seen(directory, settings.profile, thresholds, sources), *_how(parts, sources)),
        )
    return _store(model, target, evaluation)


def _modes(directory: ModelDirectory, settings: EvaluationSettings) -> list[Mode]:
    """What is measured, dense first."""
    if settings.modes is None:
        return offered_modes(directory, settings.profile, settings.thresholds)
    predictors = find_outlines(directory, settings.profile)
    asked = [choose_mode(mode, directory, predictors) for mode in settings.modes]
    return list(dict.fromkeys((choose_mode(REFERENCE, directory, predictors), *asked)))


def _open(model: Path, mode: Mode, settings: EvaluationSettings) -> Engine:
    return open_engine(
        model,
        mode=mode,
        plan=settings.plan,
        device=settings.device,
        context=settings.context,
        kv_format=settings.kv_format,
        threads=settings.threads,
        profile=settings.profile,
        thresholds=settings.thresholds,
    )


def _layers(engine: Engine, sample: Sequence[Passage], tell: Progress) -> tuple[LayerQuality, ...]:
    mode = engine.options.mode
    if mode == REFERENCE:
        return ()
    return measure_layers(engine, sample, lambda done, total: tell(f"layers, {mode}", done, total))


def _mode(
    engine: Engine,
    found: Measured,
    reference: Measured,
    passages: Sequence[Passage],
    parts: Sequence[Part],
    layers: tuple[LayerQuality, ...],
) -> ModeEvaluation:
    return ModeEvaluation(
        mode=engine.options.mode,
        quality=found.quality(reference, predicted_tokens(passages), parts),
        layers=layers,
        losses=tuple(sums(found.losses, parts).tolist()),
        divergences=tuple(sums(found.divergences, parts).tolist()),
        agreeing=tuple(int(count) for count in sums(found.agreeing, parts)),
    )


def _documents(
    parts: Sequence[Part], passages: Sequence[Passage], sources: Sequence[Source]
) -> tuple[EvaluatedDocument, ...]:
    """What the bootstrap drew, with parts of one document numbered."""
    of, numbers, documents = Counter(part.document for part in parts), Counter[int](), []
    for part in parts:
        numbers[part.document] += 1
        source, pieces = sources[part.document], of[part.document]
        name = source.name if pieces == 1 else f"{source.name}, part {numbers[part.document]} of {pieces}"
        tokens = sum(passage.predicted for passage in passages[part.first : part.stop])
        documents.append(EvaluatedDocument(name, digest_text(source.digest), tokens))
    return tuple(documents)


def _how(parts: Sequence[Part], sources: Sequence[Source]) -> list[str]:
    """What the interval was drawn from, or why there is none."""
    notes = []
    if len(parts) > len(sources):
        notes.append(
            f"documents with more than {LARGEST_PART:.0%} of the text were cut for the interval: {len(sources):,} "
            f"documents became {len(parts):,}, which makes it a little too narrow"
        )
    if len(parts) < FEWEST_DOCUMENTS:
        notes.append(
            f"no interval: the text makes {len(parts)} documents, and fewer than {FEWEST_DOCUMENTS} say nothing of "
            "others; give a longer text, or more files"
        )
    return notes


def _seen(directory: ModelDirectory, profile: str, thresholds: str | None, sources: Sequence[Source]) -> list[str]:
    """Warnings where documents of the text made the profile or the thresholds, so that figures flatter."""
    known = []
    if directory.has_profile(profile):
        made = f"the text of the profile {profile!r}, on which predictors are trained and their thresholds set"
        known.append((read_profile(directory.profile_path(profile)).documents, made))
    found = None if thresholds is None else find_thresholds(directory, thresholds)
    if found is not None:
        documents = np.array([int(digest, 16) for digest in found.documents], dtype=np.uint64)
        known.append((documents, f"the text that set the thresholds {thresholds!r}"))
    ours, warnings = np.array([source.digest for source in sources], dtype=np.uint64), []
    for theirs, made in known:
        again = np.isin(ours, theirs)
        if again.any():
            first = sources[int(again.argmax())].name
            warnings.append(
                f"warning: {int(again.sum()):,} of {len(sources):,} documents were in {made} ({first} is one): the "
                "figures flatter; give files that were kept apart"
            )
    return warnings


def _store(model: Path, target: Path, evaluation: Evaluation) -> EvaluationReport:
    """Write it where the directory can be written; hours of measuring are not lost where it cannot."""
    try:
        with only_writer(model, "store the evaluation"), explain_os_errors("store the evaluation", model):
            target.parent.mkdir(exist_ok=True)
            write_evaluation(target, evaluation)
            _store_loss(model, evaluation)
    except UserError as error:
        return EvaluationReport(replace(evaluation, notes=(*evaluation.notes, f"not stored: {error}")), None)
    return EvaluationReport(evaluation, target)


def _store_loss(model: Path, evaluation: Evaluation) -> None:
    """Have thresholds say what they cost, where that was measured."""
    name, digest = evaluation.settings.get("thresholds"), evaluation.digests.get("thresholds")
    qualities = {mode.mode: mode.quality for mode in evaluation.modes}
    if name is None or digest is None or "threshold" not in qualities:
        return
    found = qualities["threshold"]
    text = ", ".join(Path(path).name for path in evaluation.text.paths)
    loss = Loss(text, found.tokens, qualities[REFERENCE].perplexity, found.perplexity, found.ratio, found.interval)
    record_loss(ModelFiles.open_files(model), str(name), digest, loss)
