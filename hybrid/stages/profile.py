"""`hybrid profile`: which neurons fire on a text, predictors that say so beforehand, and the hottest rows first.

The text goes through the engine's own operators in rounds, each layer's weights used for all tokens of a round before
the next layer is touched. Files are written last, each atomically, in an order in which a kill leaves a directory that
works: predictors, profile (both by neuron id), then the rows of each layer. Until then a checkpoint is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hybrid.model.pages import PAGE_TOKENS
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.profile_estimate import Sizes, estimate
from hybrid.stages.profile_results import ProfileReport, make_report, write_counts
from hybrid.stages.profile_setup import (
    Note,
    ProfileSettings,
    Tell,
    given_path,
    keeping,
    open_checkpoint,
    prepare,
    read_given,
    read_whole,
)
from hybrid.stages.profile_text import choose_context
from hybrid.stages.texts import Corpus
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.directory import ModelDirectory
from placement.plan import Mode
from profiler.artifacts import (
    UserError,
    directory_lock,
    remove_stale_partials,
    require_free_space,
    sha256_file,
    write_atomic,
)
from profiler.predictor import PredictorSet
from profiler.predictor_file import write_predictors

PROFILE_CONTEXT = 2048  # tokens of one window; the model's own context where that is shorter

__all__ = ["ProfileSettings", "profile"]


def profile(
    path: Path,
    texts: Sequence[Path],
    settings: ProfileSettings,
    progress: Tell | None = None,
    note: Note | None = None,
) -> ProfileReport:
    """Profile a model directory on texts; see the module. The directory works throughout, and after a kill.

    Args:
        path: the model directory.
        texts: files, folders and `.jsonl` files, each a domain; see `hybrid.stages.texts`.
        settings: see `ProfileSettings`. A killed run goes on when it is started again with the same ones.
        progress: told `(stage, done, total)`.
        note: told what is worth knowing before the result.

    Raises:
        UserError: a text that is none, too little of it, a full disk, a model that computes no numbers, a directory
            that cannot be written or is being written.
    """
    notes: list[str] = []

    def say(line: str) -> None:
        notes.append(line)
        if note:
            note(line)

    tell = progress or (lambda stage, done, total: None)
    with directory_lock(path, "profile"):
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot profile: {path} cannot be written; work on a copy of your own")
        removed = remove_stale_partials(path)
        directory = ModelDirectory.open(path)
        spec, given = directory.spec, read_given(directory, settings)
        cutoffs = None
        if settings.thresholds is not None:
            cutoffs = require_thresholds(directory, settings.thresholds).cutoffs
        elif not spec.has_exact_zeros:
            say(
                f"the activation of this model, {spec.activation}, is never exactly zero: every neuron counts as "
                "active for every token, so the counts tell no neuron from another, and no predictors are trained"
            )
        mode: Mode = "exact" if spec.has_exact_zeros else "dense"  # the same states, and less to compute
        if cutoffs is not None:
            mode = "threshold"
        options = EngineOptions(mode=mode, context=min(PAGE_TOKENS, spec.max_positions), cutoffs=cutoffs)
        with Engine(directory, options) as engine:
            corpus = Corpus.open(texts, engine.tokenizer, path, say)
            digest = read_whole(corpus, tell)
            context = choose_context(corpus, settings.tokens, min(spec.max_positions, PROFILE_CONTEXT))
            look_ahead = settings.look_ahead
            if given is not None:
                look_ahead = any(predictor.reads == "previous_ffn_input" for predictor in given.layers)
            sizes = Sizes(spec, len(corpus.domains), settings.recipe(spec), settings.rank, look_ahead)
            checkpoint = open_checkpoint(directory, digest, context, sizes, settings, say)
            with keeping(checkpoint, say):
                passes = prepare(engine, corpus, context, sizes, settings, checkpoint, given, tell, say)
                assert checkpoint.progress is not None
                if passes.recipe:
                    passes.sampling()  # too little text is said now
                expected = estimate(
                    passes.runner,
                    passes.text,
                    sizes,
                    sample=int(passes.text.lengths[passes.sample].sum()),
                    round_tokens=checkpoint.progress.round_tokens,
                    rounds=len(passes.rounds),
                )
                say(expected.line())
                require_free_space(path, expected.scratch, "profiling")
                predictors = passes.run()
        named_by = put_predictors(directory, settings, predictors)
        counted = passes.recorder.to_profile(
            directory.source_digest, digest, cutoffs or (), named_by, passes.text.digests
        )
        write_counts(directory, counted, settings.name, tell)
        checkpoint.remove()
    return make_report(path, settings.name, counted, predictors, removed, expected, passes.clock, tuple(notes))


def put_predictors(directory: ModelDirectory, settings: ProfileSettings, predictors: PredictorSet | None) -> str | None:
    """Write those that were trained, or copy those that were given, byte by byte; the digest of the file.

    Without any, those of an earlier profile of this name go.
    """
    target = directory.predictors_path(settings.name)
    if predictors is None:
        target.unlink(missing_ok=True)
        return None
    if settings.predictors is None:
        write_predictors(target, predictors)
    elif (source := given_path(directory, settings.predictors)) != target:
        write_atomic(target, source.read_bytes())
    return sha256_file(target)
