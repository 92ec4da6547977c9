"""`hybrid plan`: from a profiled model, a machine's figures and budgets to a plan in the model directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hybrid.runtime.choices import check_kv_format, choose_context, known_mode
from hybrid.runtime.sizes import model_sizes
from hybrid.runtime.this_machine import NOMINAL, SecondDevice
from hybrid.stages.finding import choose_mode, find_outlines
from hybrid.stages.plan_defaults import Given, context_note, ram_note, resolve
from hybrid.stages.thresholds import require_thresholds
from hybrid.store.files import ModelFiles, row_order_digest
from hybrid.store.rows import Ids
from placement.baselines import attention_on_gpu, everything_on_cpu, first_layers_on_gpu
from placement.explain import Explanation, explain
from placement.frequencies import Frequencies
from placement.plan import MOST_BATCH, Budgets, Digests, Mode, Objective, Plan, SolverName
from placement.plan_file import write_plan
from placement.planner import Request, make_plan
from profiler.artifacts import UserError, explain_os_errors, only_writer, sha256_file
from profiler.hardware import read_hardware
from profiler.profile import read_profile

BASELINES = (first_layers_on_gpu, attention_on_gpu, everything_on_cpu)  # those that stream rows are only simulated


@dataclass(frozen=True)
class PlanSettings:
    """What a plan is for. vram, ram, hardware: see `plan_defaults.resolve`. context: tokens of a sequence, None for the
    model's own up to 4096. mode: None takes predicted where there are predictors. batch: sequences that decode
    together. second_device: whose figures, where `hardware` names none. solver: None for the best there is.
    time_limit: seconds of the solver. explain: also solve with more memory, and predict layer-wise offload.
    unprofiled: plan exact mode without a profile too, every row counting as active; dense mode never needs one.
    """

    vram: int | None = None
    ram: int | None = None
    context: int | None = None
    mode: str | None = None
    batch: int = 1
    objective: Objective = "latency"
    hardware: str | None = None
    second_device: SecondDevice | None = None
    name: str = "default"
    profile: str = "default"
    thresholds: str = "default"
    kv_format: str = "f16"
    kv_pages: int | None = None
    solver: SolverName | None = None
    time_limit: float = 10.0
    explain: bool = False
    unprofiled: bool = False

    def __post_init__(self) -> None:
        check_kv_format(self.kv_format)
        if self.mode is not None:
            known_mode(self.mode)
        if not 1 <= self.batch <= MOST_BATCH:
            raise UserError(f"a batch is 1 to {MOST_BATCH} sequences, not {self.batch}")
        if self.objective not in get_args(Objective):
            raise UserError(f"objective {self.objective!r} is not known; there are {', '.join(get_args(Objective))}")


@dataclass(frozen=True)
class PlanReport:
    """A plan and the file that it was written to. measured: the machine's figures were measured on it. notes: where
    figures and budgets come from, and what may go wrong. explanation: where it was asked for.
    """

    path: Path
    plan: Plan
    measured: bool
    notes: tuple[str, ...]
    explanation: Explanation | None


def plan(path: Path, settings: PlanSettings) -> PlanReport:
    """Solve, and write the plan into the model directory.

    Raises:
        UserError: no profile, one of another model, or a budget that does not hold the model.
    """
    given = resolve(settings.hardware, settings.second_device, settings.vram, settings.ram)
    directory = ModelFiles.open_files(path)
    request, result = solve(directory, settings, given)
    explanation = explain(request, result) if settings.explain else None
    target = directory.plan_path(settings.name)
    with only_writer(path, "write a plan"):
        with explain_os_errors("write a plan", path):
            target.parent.mkdir(exist_ok=True)
        write_plan(target, result)
    found = [context_note(given.hardware, result.bytes["gpu"]["context"])]
    if settings.hardware is None and given.ram is None:
        found.append(ram_note(result.total_bytes("ram")))
    notes = (*given.notes, *(note for note in found if note is not None))
    return PlanReport(target, result, given.hardware.measured, notes, explanation)


def solve(directory: ModelFiles, settings: PlanSettings, given: Given) -> tuple[Request, Plan]:
    """What is asked of placement, and the plan that it gives; nothing is written.

    Raises:
        UserError: as `plan`.
    """
    request, found = read_request(directory, settings, given)
    context = choose_context(settings.context, None, directory.spec.max_positions)
    budgets = Budgets(given.vram, given.ram, context, settings.batch)
    return request, make_plan(request, budgets, name=settings.name, digests=found)


def read_request(directory: ModelFiles, settings: PlanSettings, given: Given) -> tuple[Request, Digests]:
    """The model as placement sees it, and what a plan of it binds to.

    Raises:
        UserError: no profile, one of another model, or one that does not serve the mode.
    """
    predictors = find_outlines(directory, settings.profile)
    mode = choose_mode(settings.mode, directory, predictors)
    row_orders = directory.row_orders()
    uncounted = mode == "dense" or (mode == "exact" and settings.unprofiled)
    if uncounted and not directory.has_profile(settings.profile):
        frequencies, counted = Frequencies.unknown(*row_orders.shape), None
    else:
        frequencies = _counted(directory, settings, mode, predictors is not None, row_orders)
        counted = sha256_file(directory.profile_path(settings.profile))
    context = choose_context(settings.context, None, directory.spec.max_positions)
    request = Request(
        sizes=model_sizes(
            directory,
            predictors,
            context,
            given.vram,
            settings.kv_format,
            given.hardware.context,
            settings.kv_pages,
        ),
        frequencies=frequencies,
        hardware=given.hardware,
        mode=mode,
        objective=settings.objective,
        time_limit=settings.time_limit,
        solver=settings.solver,
    )
    return request, digests(directory, row_orders, counted)


def _counted(
    directory: ModelFiles, settings: PlanSettings, mode: Mode, has_predictors: bool, row_orders: Ids
) -> Frequencies:
    """What the profile counted of each row.

    Raises:
        UserError: there is none, or it is of another model, or it does not serve the mode.
    """
    mend = f"hybrid profile {directory.path} --text FILE"
    profile = read_profile(directory.profile_path(settings.profile), mend)
    if profile.source_digest != directory.source_digest:
        raise UserError(f"the profile {settings.profile!r} is of another model; make one with: {mend}")
    if mode == "predicted" and not has_predictors:
        raise UserError(f"predicted mode needs predictors; make them with: {mend}")
    if mode == "threshold" and profile.thresholds != require_thresholds(directory, settings.thresholds).cutoffs:
        raise UserError(
            f"the profile {settings.profile!r} was not counted with the thresholds {settings.thresholds!r}, so it "
            f"does not say which neurons they leave; make one with: {mend} --thresholds {settings.thresholds}"
        )
    return Frequencies.in_row_order(profile, row_orders)


def baseline_plans(directory: ModelFiles, budgets: Budgets, kv_format: str, gpu_context: int) -> dict[str, Plan | str]:
    """Layer-wise offload within budgets, by name, in the forms that the engine runs; a text says why there is no plan.

    The placements follow from bytes alone; the times that they predict are by nominal figures. gpu_context: bytes of
    the GPU that a process takes by being there.
    """
    sizes = model_sizes(directory, None, budgets.context, budgets.vram, kv_format, gpu_context)
    bound, hardware = digests(directory, directory.row_orders(), None), read_hardware(NOMINAL)
    found: dict[str, Plan | str] = {}
    for make in BASELINES:
        try:
            made = make(digests=bound, sizes=sizes, hardware=hardware, budgets=budgets)
            found[made.name] = made
        except UserError as error:
            found[make.__name__.replace("_", "-")] = str(error)
    return found


def digests(directory: ModelFiles, row_orders: Ids, profile: str | None) -> Digests:
    """What a plan binds to in a model directory."""
    return Digests(directory.pack_digest, row_order_digest(row_orders), profile)
