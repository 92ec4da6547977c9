"""`hybrid plan`: from a profiled model, a machine's figures and budgets to a plan in the model directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid.model.kv_cache import KV_FORMATS
from hybrid.runtime.options import choose_context
from hybrid.runtime.scheduler import MODES
from hybrid.runtime.sizes import model_sizes
from hybrid.stages.opening import choose_mode, find_predictors
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.directory import ModelDirectory
from placement.baselines import first_layers_on_gpu
from placement.frequencies import Frequencies
from placement.plan import Budgets, Digests, Plan
from placement.plan_file import write_plan
from placement.planner import make_plan
from profiler.artifacts import UserError, directory_lock, explain_os_errors, sha256_file
from profiler.hardware import read_hardware
from profiler.profile import read_profile

# What a baseline's predicted times are computed with. Its placement follows from bytes alone.
BASELINE_HARDWARE = "cpu-stand-in"


@dataclass(frozen=True)
class PlanSettings:
    """vram, ram: bytes, ram None for no limit. context: tokens, None for the model's own up to 4096. hardware: a
    shipped name or a file. mode: None takes predicted where there are predictors. time_limit: seconds of the solver.
    """

    vram: int
    ram: int | None = None
    context: int | None = None
    mode: str | None = None
    hardware: str = "cpu-stand-in"
    name: str = "default"
    profile: str = "default"
    thresholds: str = "default"
    kv_format: str = "f16"
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        if self.kv_format not in KV_FORMATS:
            raise UserError(f"KV format {self.kv_format!r} is not known; formats are {', '.join(KV_FORMATS)}")
        if self.mode is not None and self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is not known; modes are {', '.join(MODES)}")


@dataclass(frozen=True)
class PlanReport:
    """A plan and the file that it was written to."""

    path: Path
    plan: Plan


def plan(path: Path, settings: PlanSettings) -> PlanReport:
    """Solve, and write the plan into the model directory.

    Raises:
        UserError: no profile, one of another model, or a budget that does not hold the model.
    """
    hardware = read_hardware(settings.hardware)
    with ModelDirectory.open(path) as directory:
        mend = f"hybrid profile {path} --text FILE"
        profile = read_profile(directory.profile_path(settings.profile), mend)
        if profile.source_digest != directory.source_digest:
            raise UserError(f"the profile {settings.profile!r} is of another model; make one with: {mend}")
        predictors = find_predictors(directory, settings.profile)
        mode = choose_mode(settings.mode, directory, predictors)
        if mode == "predicted" and predictors is None:
            raise UserError(f"predicted mode needs predictors; make them with: {mend}")
        if mode == "threshold" and profile.thresholds != require_thresholds(directory, settings.thresholds).cutoffs:
            raise UserError(
                f"the profile {settings.profile!r} was not counted with the thresholds {settings.thresholds!r}, so it "
                f"does not say which neurons they leave; make one with: {mend} --thresholds {settings.thresholds}"
            )
        context = choose_context(settings.context, None, directory.spec.max_positions)
        neuron_ids = np.stack([directory.layer(i).neuron_ids for i in range(directory.spec.n_layers)])
        result = make_plan(
            name=settings.name,
            digests=digests(directory, sha256_file(directory.profile_path(settings.profile))),
            sizes=model_sizes(directory, predictors, context, settings.vram, settings.kv_format),
            frequencies=Frequencies.in_row_order(profile, neuron_ids),
            hardware=hardware,
            budgets=Budgets(settings.vram, settings.ram, context),
            mode=mode,
            time_limit=settings.time_limit,
        )
        target = directory.plan_path(settings.name)
    with directory_lock(path, "write a plan"):
        with explain_os_errors("write a plan", path):
            target.parent.mkdir(exist_ok=True)
        write_plan(target, result)
    return PlanReport(target, result)


def baseline_plan(directory: ModelDirectory, plan: Plan, kv_format: str) -> Plan:
    """The layer-wise plan within the budgets of another plan: the first k layers on the GPU, the rest on the CPU."""
    sizes = model_sizes(directory, None, plan.budgets.context, plan.budgets.vram, kv_format)
    return first_layers_on_gpu(
        digests=digests(directory, None),
        sizes=sizes,
        hardware=read_hardware(BASELINE_HARDWARE),
        budgets=plan.budgets,
    )


def digests(directory: ModelDirectory, profile: str | None) -> Digests:
    """What a plan binds to in a model directory."""
    return Digests(directory.pack_digest, directory.row_order_digest(), profile)
