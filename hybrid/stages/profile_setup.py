"""What a profiling run is made of before it starts: its settings, its text, its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.runtime.by_layer import LayerRunner
from hybrid.runtime.engine import Engine
from hybrid.spec import ModelSpec
from hybrid.stages.model_predictors import read_model_predictors
from hybrid.stages.profile_checkpoint import Checkpoint, Progress
from hybrid.stages.profile_estimate import Sizes, choose_tokens
from hybrid.stages.profile_passes import Passes
from hybrid.stages.profile_results import make_folders
from hybrid.stages.profile_rounds import BATCH_WINDOWS
from hybrid.stages.profile_text import TYPICAL_BYTES, tokenise
from hybrid.stages.texts import Corpus
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, sha256_file
from profiler.capture import CaptureLimits
from profiler.formats import vector_bytes
from profiler.predictor import PredictorSet
from profiler.recorder import Recorder
from profiler.selection import Target
from profiler.training import Recipe

Tell = Callable[[str, int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class ProfileSettings:
    """name: of the profile in the directory. tokens: of the text, None for all. rank: of the predictors, None to search
    one for each layer. predictor_bytes: of all of them at most. perceptrons: try those too. look_ahead: have predictors
    read what the layer before read. steps: of training. memory: bytes, None for a part of what is free. keep: share of
    activation mass that predictors keep. train: predictors. predictors: name or file of those to count with instead of
    training any. thresholds: name of those above which an activation counts, while the states are mode threshold's;
    then no predictors are trained.
    """

    name: str = "default"
    tokens: int | None = None
    rank: int | None = None
    predictor_bytes: int | None = None
    perceptrons: bool = False
    look_ahead: bool = False
    steps: int = 300
    memory: int | None = None
    seed: int = 0
    keep: float = 0.99
    train: bool = True
    predictors: str | None = None
    thresholds: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise UserError(f"{self.name!r} is no name: use letters, digits, dots, dashes and underscores")
        if not 0.5 <= self.keep < 1:
            raise UserError(f"a share of {self.keep} of the activation mass is out of range: 0.5 to 1")
        if self.tokens is not None and self.tokens < 2:
            raise UserError("a profile takes at least two tokens")
        if self.predictors is not None and not self.train:
            raise UserError("count with given predictors, or with none: not both")
        if self.thresholds is not None and self.predictors is not None:
            raise UserError("count above thresholds, or with given predictors: not both")

    def recipe(self, spec: ModelSpec) -> Recipe | None:
        """How predictors are trained; None where none are."""
        given = self.predictors is not None or self.thresholds is not None
        if not self.train or given or not spec.has_exact_zeros:
            return None
        return Recipe(keep=self.keep, steps=self.steps)


def read_given(directory: ModelDirectory, settings: ProfileSettings) -> PredictorSet | None:
    """The predictors that the settings name, to count with; None where they name none.

    Raises:
        UserError: there are none of that name, or they are another model's.
    """
    if settings.predictors is None:
        return None
    return read_model_predictors(directory, given_path(directory, settings.predictors))


def given_path(directory: ModelDirectory, predictors: str) -> Path:
    """The file of predictors that are named by their name in the directory, or by a path."""
    path = Path(predictors)
    return path if path.is_file() else directory.predictors_path(predictors)


def read_whole(corpus: Corpus, tell: Tell) -> str:
    """The digest of a text, all of which is read for it."""
    done, size = 0, corpus.bytes

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        tell("reading the text", done, size)

    return corpus.digest(on_bytes)


def open_checkpoint(
    directory: ModelDirectory, digest: str, context: int, sizes: Sizes, settings: ProfileSettings, say: Note
) -> Checkpoint:
    """The checkpoint of a run with these settings on a text of that digest: one that was left, or a new one."""
    identity = {
        "source": directory.source_digest,
        "pack": directory.pack_digest,
        "row order": directory.row_order_digest(),
        "text": digest,
        "context": context,
        "settings": {**asdict(settings), "name": None},
        "recipe": sizes.recipe and asdict(sizes.recipe),
    }
    if settings.predictors is not None:
        identity["predictors"] = sha256_file(given_path(directory, settings.predictors))
    if settings.thresholds is not None:
        identity["thresholds"] = require_thresholds(directory, settings.thresholds).digest
    target = directory.profile_path(settings.name)
    make_folders(directory, settings.name)
    checkpoint = Checkpoint(target.parent, settings.name, identity, directory.source_digest)
    if found := checkpoint.find():
        say(found)
    if checkpoint.progress is None:
        checkpoint.begin(Progress(*choose_tokens(sizes, settings.memory, CaptureLimits())))
    return checkpoint


def prepare(
    engine: Engine,
    corpus: Corpus,
    context: int,
    sizes: Sizes,
    settings: ProfileSettings,
    checkpoint: Checkpoint,
    given: PredictorSet | None,
    tell: Tell,
    say: Note,
) -> Passes:
    """The text as tokens, and all that goes over it.

    Raises:
        UserError: the text cannot be read, or the tokenizer gives ids that the model does not have.
    """
    expected = settings.tokens or corpus.bytes // TYPICAL_BYTES

    def count(done: int) -> None:
        tell("tokenising", min(done, expected), expected)

    text = tokenise(corpus, context, settings.tokens, settings.seed, checkpoint.tokens_path, count)
    spec = sizes.spec
    if text.ids.max() >= spec.vocab_size:
        raise UserError(
            f"the tokenizer gives id {text.ids.max()}, and the model's vocabulary has {spec.vocab_size}: they do not "
            "belong together; pack the checkpoint again with its own tokenizer"
        )
    directory = engine.directory
    orders = [directory.layer(i).neuron_ids for i in range(spec.n_layers)]
    target = Target(
        vector_bytes(directory.weight_format, spec.hidden_size),
        len(spec.row_parts),
        rank=settings.rank,
        perceptrons=settings.perceptrons,
    )
    return Passes(
        directory=directory,
        runner=LayerRunner(engine, context, BATCH_WINDOWS),
        text=text,
        orders=orders,
        recorder=Recorder(spec.n_layers, spec.n_neurons, corpus.domains, orders),
        checkpoint=checkpoint,
        recipe=sizes.recipe,
        target=target,
        predictor_bytes=settings.predictor_bytes,
        given=given,
        look_ahead=sizes.look_ahead,
        seed=settings.seed,
        tell=tell,
        note=say,
    )


@contextmanager
def keeping(checkpoint: Checkpoint, say: Note) -> Iterator[None]:
    """A checkpoint outlives what stops the run, if there is something in it."""
    try:
        yield
    except BaseException as error:
        if not checkpoint.holds_something:
            checkpoint.remove()
        elif isinstance(error, KeyboardInterrupt):
            say("interrupted; the same command goes on from the last checkpoint")
        raise
