"""`hybrid prepare`: what `pack`, `profile` and `plan` do, one after the other, from a source to a model that is ready.

Each phase looks first at what is there: what is valid and was made from the same things is kept, so that the command
goes on where it was interrupted. Every phase leaves a directory that works; nothing that is there is removed.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.checkpoint.names import parameter_count
from hybrid.checkpoint.reader import Checkpoint
from hybrid.spec import ModelSpec
from hybrid.stages.pack import check_places, pack
from hybrid.stages.pack_files import origin_of
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from hybrid.stages.prepare_kept import Text, find_packed, kept_plan, kept_profile
from hybrid.stages.prepare_pace import (
    PACKED_PER_SECOND,
    PLANNING,
    Pace,
    ProfileShare,
    Status,
    operations_per_second,
    profile_seconds,
)
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.profile_estimate import format_seconds
from hybrid.stages.profile_results import finish_rows
from hybrid.stages.shipped_texts import described
from hybrid.stages.sources import Source, find_source
from hybrid.store.files import ModelFiles
from hybrid.store.origin import Origin
from placement.plan import Plan
from profiler.artifacts import format_size

Note = Callable[[str], None]


@dataclass(frozen=True)
class PrepareSettings:
    """weight_format, activation, tokenizer: as for `pack`. texts: to profile on, none for those that ship with hybrid.
    tokens: of them, None for all, or of the shipped ones a part. memory: bytes for profiling, None for a part of what
    is free. predictors: train them. plan: what the plan is for.
    """

    weight_format: str = "auto"
    activation: str | None = None
    tokenizer: Path | None = None
    texts: tuple[Path, ...] = ()
    tokens: int | None = None
    memory: int | None = None
    predictors: bool = True
    plan: PlanSettings = field(default_factory=PlanSettings)


@dataclass(frozen=True)
class Step:
    """One phase. outcome: `done`, `kept` (what was there serves), `skipped`; summary: a line that says what or why."""

    phase: str
    outcome: str
    summary: str
    seconds: float


@dataclass(frozen=True)
class PrepareReport:
    """What is ready. source: a whole path, or `org/name@commit`. bytes: of the weights as they are packed.

    tokens_per_second: as the plan predicts it. next: commands to type.
    """

    path: Path
    source: str
    weight_format: str
    bytes: int
    mode: str
    tokens_per_second: float
    steps: tuple[Step, ...]
    next: tuple[str, ...]
    seconds: float


def prepare(
    source: str,
    destination: Path,
    settings: PrepareSettings,
    show: Callable[[Status], None] = lambda status: None,
    note: Note = lambda line: None,
) -> PrepareReport:
    """Make a model directory of a source, with a profile and a plan; see the module.

    Args:
        source: a checkpoint's folder, a GGUF file, or a name on a hub; see `parse_source`.
        destination: the model directory, new or begun by an earlier call.
        settings: see `PrepareSettings`.
        show: told how far all of it is.
        note: told what is worth knowing, a line for each phase that has ended among it.

    Raises:
        UserError: a phase fails, or the destination holds something else than what this would make.
    """
    return _Preparation(destination.absolute(), settings, Pace({}, show), note).run(find_source(source, note))


class _Preparation:
    """One call of `prepare`."""

    def __init__(self, destination: Path, settings: PrepareSettings, pace: Pace, note: Note) -> None:
        self.destination, self.settings, self.pace, self.note = destination, settings, pace, note
        self.text = Text.choose(settings.texts, settings.tokens)
        self.steps: list[Step] = []
        self.began = self.phase_began = time.monotonic()

    def run(self, source: Source) -> PrepareReport:
        files = self._packed(source)
        self._profiled(files)
        plan = self._planned(files)
        self.pace.finish()
        return PrepareReport(
            path=self.destination,
            source=source.name,
            weight_format=files.weight_format,
            bytes=files.weight_bytes,
            mode=plan.mode,
            tokens_per_second=plan.budgets.batch / plan.expected.token_seconds,
            steps=tuple(self.steps),
            next=self._next(),
            seconds=time.monotonic() - self.began,
        )

    def _packed(self, source: Source) -> ModelFiles:
        """Download and pack, where that is not done."""
        check_places(source.path and source.path.resolve(), self.destination.resolve())
        if (files := self._found(source)) is not None:
            self._ended("pack", "kept", f"{self.destination} is packed, in {files.weight_format}")
            return files
        if source.listing is not None:
            self.pace.begin("download")
            path = source.fetch(lambda done, total: self.pace.tell("download", done / max(1, total)))
            self._ended("download", "done", f"{source.name} is in {path}")
        else:
            path = source.fetch(lambda done, total: None)
        checkpoint = self._open(path)
        self._expect(checkpoint)
        self.pace.begin("pack")

        def tell(done: int, total: int) -> None:
            self.pace.tell("packing", done / max(1, total))

        report = pack(
            path,
            self.destination,
            self.settings.weight_format,
            tell,
            self.settings.activation,
            self.settings.tokenizer,
            source.hub_name,
        )
        for line in report.notes:
            self.note(line)
        self._ended("pack", "done", f"{format_size(report.bytes)} in {report.weight_format} in {self.destination}")
        return ModelFiles.open_files(self.destination)

    def _found(self, source: Source) -> ModelFiles | None:
        given = self.settings

        def serves(origin: Origin) -> bool:
            if source.path is None:
                kept = None if given.tokenizer is None else str(given.tokenizer.absolute())
                return (origin.options.get("activation"), origin.options.get("tokenizer")) == (given.activation, kept)
            return origin_of(self._open(source.path.absolute()), given.activation, given.tokenizer, None) == origin

        return find_packed(self.destination, source, given.weight_format, serves, self._read)

    def _open(self, path: Path) -> Checkpoint:
        return Checkpoint.open(path, self.settings.activation, with_tokenizer=self.settings.tokenizer is None)

    def _read(self, source: Source) -> Checkpoint:
        """A source with all of its weights read, so that it has a digest."""
        self.pace.begin("compare")
        path = source.fetch(lambda done, total: self.pace.tell("download", 0.5 * done / max(1, total)))
        checkpoint = self._open(path)
        total, done = sum(tensor.nbytes for tensor in checkpoint.tensors.values()), 0
        for name, tensor in checkpoint.tensors.items():
            for _ in checkpoint.blocks(name):
                pass
            done += tensor.nbytes
            self.pace.tell(f"comparing {source.name} with {self.destination}", done / total)
        self.pace.end()
        return checkpoint

    def _profiled(self, files: ModelFiles) -> None:
        if not files.spec.has_exact_zeros:
            return self._ended(
                "profile",
                "skipped",
                f"{files.spec.activation} is never exactly zero, so no neuron can be left out without loss; threshold "
                f"mode leaves some out, lossily: hybrid calibrate {shlex.quote(str(self.destination))} --text FILE",
            )
        found = kept_profile(files, self.text, self.settings.predictors, self.note)
        if found is not None:
            finish_rows(self.destination, found, "default")
            return self._ended("profile", "kept", f"the profile default, {found.tokens:,} tokens counted, is there")
        if not self.pace.expected:
            self._tell_estimate(self._profile_guess(files.spec, parameter_count(files.spec)))
        if self.text.is_shipped and self.text.tokens:
            self.note(described(self.text.paths, self.text.tokens))
        self.pace.begin("profile")
        share = ProfileShare(self.text.tokens or self.text.about, self.settings.predictors)
        report = profile(
            self.destination,
            self.text.paths,
            ProfileSettings(tokens=self.text.tokens, memory=self.settings.memory, train=self.settings.predictors),
            lambda stage, done, total: self.pace.tell(stage, share.after(stage, done, total)),
            self.note,
        )
        active = sum(layer.active for layer in report.layers) / len(report.layers)
        trained = f", predictors of {format_size(report.predictor_bytes)}" if report.ranks else ", no predictors"
        return self._ended(
            "profile", "done", f"{report.tokens:,} tokens counted, {active:.1%} of the neurons active{trained}"
        )

    def _planned(self, files: ModelFiles) -> Plan:
        self.pace.begin("plan")
        plan = kept_plan(files, self.settings.plan)
        if plan is not None:
            self._ended("plan", "kept", f"the plan {plan.name} is there; {_plan_line(plan)}")
            return plan
        report = make_plan(self.destination, self.settings.plan)
        for line in report.notes:
            self.note(line)
        self._ended("plan", "done", _plan_line(report.plan))
        return report.plan

    def _expect(self, checkpoint: Checkpoint) -> None:
        """What all phases should take, told before the first."""
        weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        self._tell_estimate(
            {"pack": weights / PACKED_PER_SECOND, **self._profile_guess(checkpoint.spec, checkpoint.parameters)}
        )

    def _profile_guess(self, spec: ModelSpec, parameters: int) -> dict[str, float]:
        guess = {"plan": PLANNING}
        if not spec.has_exact_zeros:
            return guess
        tokens = self.text.tokens or self.text.about
        return {
            "profile": profile_seconds(spec, parameters, tokens, self.settings.predictors, operations_per_second())
        } | guess

    def _tell_estimate(self, expected: dict[str, float]) -> None:
        self.pace.expected = dict(expected)
        parts = ", ".join(f"{phase} {format_seconds(seconds)}" for phase, seconds in expected.items())
        faster = ""
        if expected.get("profile", 0) > 60 and self.settings.predictors:
            faster = "; most of it trains predictors, which --no-predictors leaves out (exact mode needs none)"
        self.note(f"about {format_seconds(sum(expected.values()))} altogether ({parts}), by a guess{faster}")

    def _ended(self, phase: str, outcome: str, summary: str) -> None:
        self.pace.end()
        now = time.monotonic()
        self.steps.append(Step(phase, outcome, summary, now - self.phase_began))
        self.phase_began = now
        self.note(f"{phase}: {summary}")

    def _next(self) -> tuple[str, ...]:
        stand_in = " --plan default --second-device cpu" if self.settings.plan.second_device == "cpu" else ""
        quoted = shlex.quote(str(self.destination))
        return (
            f'hybrid run {quoted} "Once upon a time"{stand_in}',
            f"hybrid chat {quoted}{stand_in}",
            f"hybrid serve {quoted}{stand_in}",
        )


def _plan_line(plan: Plan) -> str:
    share = plan.rows_on_gpu / plan.rows
    where = f"{share:.1%} of the neurons on the gpu" if plan.budgets.vram else "all of it on the CPU"
    return f"{plan.mode} mode, {where}, {plan.budgets.batch / plan.expected.token_seconds:,.3g} tokens/s predicted"
