"""Who takes part in a comparison: this engine, skipping rows and layer-wise; each in a process of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hybrid.runtime.choices import check_kv_format, choose_context
from hybrid.runtime.cores import shared_cores, usable_cores
from hybrid.runtime.options import check_slowdown
from hybrid.stages.finding import find_plan, offered_modes
from hybrid.stages.peers.protocol import Worker, WorkerError
from hybrid.stages.plan import PlanSettings, baseline_plans, solve
from hybrid.stages.plan_defaults import Given, resolve
from hybrid.store.files import ModelFiles
from placement.plan import Budgets, Plan
from placement.plan_file import write_plan
from profiler.artifacts import UserError, format_size

Kind = Literal["layer-wise", "hybrid"]
ENGINE = "hybrid.stages.peers.engine_worker"
CPU_ALONE = "everything-on-cpu"
LOSSY = {"threshold": "threshold, lossy"}


@dataclass(frozen=True)
class Settings:
    """What is compared: `tokens` decoded after each of `prompts` prompts of the text, `rounds` times.

    vram: bytes of GPU memory for everybody; plans are made for it. plan: one of the directory's, by name or path, which
    has a budget of its own. Without either all is on the CPU. prompt_tokens: of each prompt, until whose first token
    is timed. text_tokens: how much of the text perplexity is measured on; None for all of it. threads: of the CPU, for
    everybody. checkpoint, gguf: the same model for transformers and for llama.cpp. python: an interpreter in which
    their packages are looked for first. slowdown, overlap: of `EngineOptions`.
    """

    vram: int | None = None
    plan: str | None = None
    device: Literal["cpu", "cuda"] | None = None
    tokens: int = 48
    prompts: int = 4
    prompt_tokens: int = 128
    rounds: int = 3
    text_tokens: int | None = 4096
    context: int | None = None
    kv_format: str = "f16"
    threads: int | None = None
    mmap: bool = True
    slowdown: Mapping[str, float] = field(default_factory=dict)
    overlap: bool = True
    checkpoint: Path | None = None
    gguf: Path | None = None
    python: str | None = None

    def __post_init__(self) -> None:
        check_kv_format(self.kv_format)
        if min(self.tokens, self.prompts, self.rounds) < 1 or self.prompt_tokens < 2:
            raise UserError("give at least one round, one prompt of two tokens, and one token to decode")


@dataclass(frozen=True)
class Setup:
    """What all contenders share. budgets: None without a second device. gpu_context: bytes of the GPU that a process
    takes by being there. threads: of the CPU, beside a stand-in those of
    the half that stands for it. scratch: a folder that lasts as long as the comparison.
    """

    files: ModelFiles
    settings: Settings
    budgets: Budgets | None
    gpu_context: int
    context: int
    threads: int
    scratch: Path

    @property
    def device(self) -> Literal["cpu", "cuda"] | None:
        """What the GPU is: `cuda` where nothing else was asked for."""
        return None if self.budgets is None else self.settings.device or "cuda"


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    label: its name, with places for arguments. module: of its worker; arguments: of the worker's `open`. vram: bytes of
    the GPU that it may take, 0 for none. ram: bytes of host memory that it takes for itself, the model's files aside.
    lowered_by: an argument, and the bytes of the GPU that one less of it saves, for those that count weights alone.
    unscored: why its perplexity is not measured. note: what a reader should know of it.
    """

    label: str
    kind: Kind
    program: str
    module: str
    arguments: Mapping[str, Any]
    mode: str = "dense"
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    vram: int = 0
    ram: int = 0
    lowered_by: tuple[str, int] | None = None
    unscored: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.label.format(**self.arguments)

    def lowered(self, over: int) -> Contender | None:
        """One that takes `over` bytes less of the GPU; None where nothing would be left there."""
        if self.lowered_by is None:
            return None
        argument, each = self.lowered_by
        left = int(self.arguments[argument]) - math.ceil(over / each)
        return replace(self, arguments={**self.arguments, argument: left}) if left > 0 else None


@dataclass(frozen=True)
class Absent:
    """One that is not measured, and why."""

    name: str
    kind: Kind
    program: str
    reason: str


def prepare(files: ModelFiles, settings: Settings, scratch: Path) -> tuple[Setup, Plan | None, Given | None]:
    """What contenders share, the plan that was named, and what plans are made with where a budget was.

    Raises:
        UserError: the plan is not there, or is for more than the budget; or prompts do not fit the context.
    """
    named = find_plan(files, settings.plan)
    given = None
    if settings.vram:
        given = resolve(None, settings.device or "cuda", settings.vram, None)
    if named is not None and settings.vram is not None and named.budgets.vram > settings.vram:
        raise UserError(
            f"the plan {named.name} is for {format_size(named.budgets.vram)}, and --vram gives "
            f"{format_size(settings.vram)}: leave one of them out"
        )
    planned = None if named is None else named.budgets.context
    context = choose_context(settings.context, planned, files.spec.max_positions)
    if settings.prompt_tokens + settings.tokens >= context:
        raise UserError(
            f"prompts of {settings.prompt_tokens} tokens and {settings.tokens} decoded after them do not fit the "
            f"context of {context}; give fewer with --prompt-tokens or --max-tokens, or a larger --context"
        )
    vram = settings.vram if settings.vram is not None else named.budgets.vram if named is not None else 0
    budgets = Budgets(vram, None, context) if vram else None
    check_slowdown(settings.slowdown, settings.device if budgets is not None else None)
    threads = settings.threads or usable_cores()
    if budgets is not None and settings.device == "cpu":
        threads = shared_cores(threads)[0]
    taken = given.hardware.context if given is not None else named.bytes["gpu"]["context"] if named is not None else 0
    return Setup(files, settings, budgets, taken, context, threads, scratch), named, given


def with_context(setup: Setup, given: Given | None, taken: int) -> tuple[Setup, Given | None]:
    """The same, where a process was seen to take so much of the GPU by being there."""
    if given is not None:
        taken = max(taken, given.hardware.context_bytes or 0)
        given = replace(given, hardware=replace(given.hardware, context_bytes=taken))
    return replace(setup, gpu_context=max(taken, setup.gpu_context if given is None else 0)), given


def context_of_a_process() -> int:
    """Bytes of the GPU that a process of this engine takes by being there, and may come to take.

    Raises:
        UserError: there is no GPU that it can use.
    """
    try:
        with Worker(ENGINE) as worker:
            return int(worker.ask("context")["bytes"])
    except WorkerError as error:
        raise UserError(error.reason) from error


def hybrid_contenders(setup: Setup, named: Plan | None, given: Given | None) -> list[Contender | Absent]:
    """This engine in the modes that skip rows: on the plan that was named, and on those made for the budget."""
    found: list[Contender | Absent] = []
    for mode in offered_modes(setup.files)[1:]:
        title = LOSSY.get(mode, str(mode))
        if named is not None:
            path = _write(setup, named, f"named-{mode}")
            found.append(_ours(setup, f"{title}, plan {named.name}", "hybrid", mode, path, named.budgets.vram))
        if given is not None and setup.budgets is not None:
            made = _made_for(setup, mode, given)
            if isinstance(made, str):
                found.append(Absent(f"{title}, planned", "hybrid", "hybrid", made))
            else:
                path = _write(setup, made, f"made-{mode}")
                found.append(_ours(setup, f"{title}, planned", "hybrid", mode, path, setup.budgets.vram))
        if setup.budgets is None:
            found.append(_ours(setup, title, "hybrid", mode, None, 0))
    return found


def layer_wise_contenders(setup: Setup) -> list[Contender | Absent]:
    """This engine with whole layers, or whole parts of layers, on one unit or the other, and nothing skipped."""
    if setup.budgets is None:
        return [_ours(setup, CPU_ALONE, "layer-wise", "dense", None, 0)]
    found: list[Contender | Absent] = []
    plans = baseline_plans(setup.files, setup.budgets, setup.settings.kv_format, setup.gpu_context)
    for name, made in plans.items():
        if isinstance(made, str):
            found.append(Absent(name, "layer-wise", "hybrid", made))
        elif name == CPU_ALONE and setup.device == "cuda":
            found.append(_ours(setup, name, "layer-wise", "dense", None, 0))
        else:  # beside a stand-in the CPU is the half of this machine that stands for one
            found.append(_ours(setup, name, "layer-wise", "dense", _write(setup, made, name), made.budgets.vram))
    return found


def notes_of(given: Given | None, contenders: Sequence[Contender | Absent]) -> list[str]:
    """What a reader should know beside the figures."""
    notes = [] if given is None else list(given.notes)
    notes += [f"{one.name}: {one.note}" for one in contenders if isinstance(one, Contender) and one.note]
    return notes


def _ours(setup: Setup, name: str, kind: Kind, mode: str, plan: Path | None, vram: int) -> Contender:
    settings = setup.settings
    arguments: dict[str, Any] = {
        "path": str(setup.files.path),
        "threads": settings.threads,
        "context": setup.context,
        "mode": mode,
        "plan": None if plan is None else str(plan),
        "device": None if plan is None else setup.device,
        "kv_format": settings.kv_format,
        "mmap": settings.mmap,
        "slowdown": dict(settings.slowdown) if plan is not None else {},
        "overlap": settings.overlap,
    }
    held = 0 if settings.mmap else sum(record.size for record in setup.files.manifest.files.values())
    return Contender(
        name.replace("{", "{{").replace("}", "}}"), kind, "hybrid", ENGINE, arguments, mode, vram=vram, ram=held
    )


def _made_for(setup: Setup, mode: str, given: Given) -> Plan | str:
    """The best plan within the budget for a mode, or why there is none.

    Thresholds that the profile was not counted with leave fewer rows than are active: the plan for exact mode serves.
    """
    problem = ""
    for planned in dict.fromkeys((mode, "exact" if mode == "threshold" else mode)):
        wanted = PlanSettings(
            vram=given.vram, context=setup.context, mode=planned, kv_format=setup.settings.kv_format, name="planned"
        )
        try:
            return solve(setup.files, wanted, given)[1]
        except UserError as error:
            problem = problem or str(error)
    return problem


def _write(setup: Setup, plan: Plan, name: str) -> Path:
    path = setup.scratch / f"{name}.json"
    write_plan(path, plan)
    return path
