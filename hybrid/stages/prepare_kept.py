"""What `hybrid prepare` finds already done: a packed model, a profile and a plan that serve what is asked for now."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.checkpoint.reader import Checkpoint
from hybrid.runtime.choices import check_same_model, choose_context
from hybrid.stages.finding import choose_mode, find_outlines
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan_defaults import resolve
from hybrid.stages.profile_setup import read_whole
from hybrid.stages.shipped_texts import SHIPPED_TOKENS, broad_texts
from hybrid.stages.sources import Source
from hybrid.stages.texts import Corpus
from hybrid.store.files import ModelFiles
from hybrid.store.origin import Origin, read_origin
from hybrid.tokenizer import load_tokenizer
from placement.plan import Plan
from placement.plan_file import read_plan
from profiler.artifacts import UserError, sha256_file
from profiler.profile import Profile, read_profile

BYTES_PER_TOKEN = 4  # of text, about
MOST_BYTES_PER_TOKEN = 8  # so that a text has at least so many tokens as its bytes by this
COUNTED = 0.9  # of the tokens asked for, which windows that are not full may leave
Note = Callable[[str], None]


@dataclass(frozen=True)
class Text:
    """What a model is profiled on. tokens: at most, None for all. is_shipped: nobody named another."""

    paths: tuple[Path, ...]
    tokens: int | None
    is_shipped: bool
    is_asked: bool

    @staticmethod
    def choose(texts: Sequence[Path], tokens: int | None) -> Text:
        """The texts named, else a part of those that ship with hybrid."""
        if texts:
            return Text(tuple(texts), tokens, False, True)
        return Text(tuple(broad_texts()), tokens or SHIPPED_TOKENS, True, tokens is not None)

    @property
    def about(self) -> int:
        """Tokens that there are, about; 0 where a path cannot be looked at, which profiling tells."""
        size = 0
        for path in self.paths:
            files = path.rglob("*") if path.is_dir() else [path]
            size += sum(file.stat().st_size for file in files if file.is_file())
        return size // BYTES_PER_TOKEN


def find_packed(
    destination: Path,
    source: Source,
    weight_format: str,
    serves: Callable[[Origin], bool],
    read: Callable[[Source], Checkpoint],
) -> ModelFiles | None:
    """The model directory, if it was packed from the source; None where nothing is there.

    Args:
        destination: the directory.
        source: what it should be packed from.
        weight_format: in which it should be; `auto` takes what is there.
        serves: whether an origin that names the source is of it as it is now, read by the same options.
        read: reads all of the source, where its origin does not tell whether it is the same model.

    Raises:
        UserError: something else is there.
    """
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return None
    try:
        files = ModelFiles.open_files(destination)
    except UserError as error:
        raise UserError(
            f"{destination} is there and is no model directory ({error}); choose another folder, or remove it"
        ) from error
    remove = f"choose another folder, or remove it: rm -r {shlex.quote(str(destination))}"
    origin = read_origin(destination)
    if origin is None or origin.source != source.name or not serves(origin):
        checkpoint = read(source)
        if (checkpoint.source_digest(), checkpoint.spec) != (files.source_digest, files.spec):
            of = "" if origin is None else f", packed from {origin.source},"
            raise UserError(f"{destination}{of} holds another model than {source.name}; {remove}")
    if weight_format not in ("auto", files.weight_format):
        raise UserError(f"{destination} is packed in {files.weight_format}; for {weight_format} {remove}")
    return files


def kept_profile(files: ModelFiles, text: Text, predictors: bool, note: Note) -> Profile | None:
    """The profile `default`, where it is of this model and its predictors, and counted on the text that is asked for.

    `note` hears why one that is there does not serve.
    """
    if not files.has_profile("default"):
        return None
    try:
        found = read_profile(files.profile_path("default"))
        outlines = find_outlines(files, "default")
    except UserError as error:
        note(f"{error}: profiled anew")
        return None
    problem = None
    named_by = None if outlines is None else sha256_file(files.predictors_path("default"))
    if found.source_digest != files.source_digest:
        problem = "is of another model"
    elif found.thresholds:
        problem = "was counted above thresholds"
    elif predictors and outlines is None:
        problem = "has no predictors"
    elif found.predictors_digest is not None and found.predictors_digest != named_by:
        problem = "was counted with other predictors"
    elif text.is_asked and not _counted_on(files, found, text):
        problem = "was counted on another text, or on less of it"
    if problem is not None:
        note(f"the profile default {problem}: profiled anew")
    return found if problem is None else None


def kept_plan(files: ModelFiles, wanted: PlanSettings) -> Plan | None:
    """The plan of the name that is asked for, where it was made for this model as it is, this machine, and the budgets
    and the mode that are asked for; without any, for no more GPU memory than is free.
    """
    path = files.plan_path(wanted.name)
    if not path.is_file():
        return None
    try:
        plan = read_plan(path)
        check_same_model(files, plan)
        given = resolve(wanted.hardware, wanted.second_device, wanted.vram, wanted.ram)
        mode = choose_mode(wanted.mode, files, find_outlines(files, wanted.profile))
    except UserError:
        return None
    context = choose_context(wanted.context, None, files.spec.max_positions)
    profile = files.profile_path(wanted.profile)
    counted = sha256_file(profile) if profile.is_file() else None
    vram = plan.budgets.vram == given.vram if wanted.vram is not None else _near(plan.budgets.vram, given.vram)
    same = (
        plan.digests.profile == counted
        and plan.mode == mode
        and plan.budgets.ram == given.ram
        and plan.budgets.context == context
        and plan.budgets.batch == wanted.batch
        and plan.hardware_digest == given.hardware.digest
    )
    return plan if same and vram else None


def _near(planned: int, free: int) -> bool:
    """Whether a plan for what was free serves for what is free now: it fits, and wastes little."""
    return free * 3 // 4 <= planned <= free


def _counted_on(files: ModelFiles, profile: Profile, text: Text) -> bool:
    """Whether a profile counted this text, about as much of it as is asked for."""
    corpus = Corpus.open(text.paths, load_tokenizer(files.path), files.path)
    if read_whole(corpus, lambda stage, done, total: None) != profile.corpus_digest:
        return False
    if text.tokens is None:
        return profile.tokens >= COUNTED * (corpus.bytes // MOST_BYTES_PER_TOKEN)
    return COUNTED * min(text.tokens, corpus.bytes // MOST_BYTES_PER_TOKEN) <= profile.tokens <= text.tokens
