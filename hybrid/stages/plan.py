"""`hybrid plan`: from a profiled model, a machine's figures and budgets to a plan in the model directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid.runtime.choices import check_kv_format, choose_context, known_mode
from hybrid.runtime.sizes import model_sizes
from hybrid.stages.finding import choose_mode, find_outlines, find_profile
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.files import ModelFiles, row_order_digest
from hybrid.store.rows import Ids
from placement.baselines import first_layers_on_gpu
from placement.frequencies import Frequencies
from placement.plan import Budgets, Digests, Plan
from placement.plan_file import write_plan
from placement.planner import Request, make_plan
from profiler.artifacts import UserError, directory_lock, explain_os_errors, sha256_file
from profiler.hardware import read_hardware

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
        check_kv_format(self.kv_format)
        if self.mode is not None:
            known_mode(self.mode)


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
    directory = ModelFiles.open_files(path)
    mend = f"hybrid profile {path} --text FILE"
    profile = find_profile(directory, settings.profile)
    predictors = find_outlines(directory, settings.profile)
    mode = choose_mode(settings.mode, directory, predictors)
    if mode == "predicted" and predictors is None:
        raise UserError(f"predicted mode needs predictors; make them with: {mend}")
    if mode == "threshold" and profile.thresholds != require_thresholds(directory, settings.thresholds).cutoffs:
        raise UserError(
            f"the profile {settings.profile!r} was not counted with the thresholds {settings.thresholds!r}, so it "
            f"does not say which neurons they leave; make one with: {mend} --thresholds {settings.thresholds}"
        )
    context = choose_context(settings.context, None, directory.spec.max_positions)
    row_orders = directory.row_orders()
    request = Request(
        sizes=model_sizes(directory, predictors, context, settings.vram, settings.kv_format),
        frequencies=Frequencies.in_row_order(profile, row_orders),
        hardware=hardware,
        mode=mode,
        time_limit=settings.time_limit,
    )
    profile_digest = sha256_file(directory.profile_path(settings.profile))
    result = make_plan(
        request,
        Budgets(settings.vram, settings.ram, context),
        name=settings.name,
        digests=digests(directory, row_orders, profile_digest),
    )
    target = directory.plan_path(settings.name)
    with directory_lock(path, "write a plan"):
        with explain_os_errors("write a plan", path):
            target.parent.mkdir(exist_ok=True)
        write_plan(target, result)
    return PlanReport(target, result)


def baseline_plan(directory: ModelFiles, plan: Plan, kv_format: str) -> Plan:
    """The layer-wise plan within the budgets of another plan: the first k layers on the GPU, the rest on the CPU."""
    sizes = model_sizes(directory, None, plan.budgets.context, plan.budgets.vram, kv_format)
    return first_layers_on_gpu(
        digests=digests(directory, directory.row_orders(), None),
        sizes=sizes,
        hardware=read_hardware(BASELINE_HARDWARE),
        budgets=plan.budgets,
    )


def digests(directory: ModelFiles, row_orders: Ids, profile: str | None) -> Digests:
    """What a plan binds to in a model directory."""
    return Digests(directory.pack_digest, row_order_digest(row_orders), profile)
