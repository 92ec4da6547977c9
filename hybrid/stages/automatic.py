"""Which plan a model is opened with: the one that is named; else, on a GPU, one that suits it as it is now.

Nothing is written: a plan that is made here lasts as long as the engine. No torch: what the device has is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.runtime.choices import check_same_model, choose_context
from hybrid.runtime.sizes import model_sizes
from hybrid.runtime.this_machine import SecondDevice, this_machine
from hybrid.runtime.vram import CONTEXT, DeviceMemory, Fit, context_cost, fit
from hybrid.stages.finding import find_outlines, find_plan
from hybrid.stages.plan import PlanSettings, solve
from hybrid.stages.plan_defaults import MARGIN_SHARE, Free, resolve
from hybrid.store.files import ModelFiles
from placement.cost import account
from placement.plan import Mode, Plan
from placement.simulate import at
from profiler.artifacts import UserError, format_size

DEFAULT = "default"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Use:
    """How a model is to be opened, as far as what it takes depends on it. context: None takes the plan's, else the
    model's own up to 4096.
    """

    mode: Mode
    context: int | None
    sequences: int
    kv_format: str
    profile: str
    thresholds: str
    kv_pages: int | None = None


@dataclass(frozen=True)
class Device:
    """What a plan's GPU is, and its memory."""

    kind: SecondDevice
    memory: DeviceMemory

    @property
    def available(self) -> int:
        """Bytes that this process may come to take of it, those of its context included."""
        return max(0, self.memory.free() + self.memory.context())


def choose_plan(files: ModelFiles, plan: str | Path | Plan | None, vram: int | None) -> Plan | None:
    """The plan that is named, as it is; None where none is.

    Raises:
        UserError: there is none of that name, or a budget is named too.
    """
    if plan is not None and vram is not None:
        raise UserError("a plan has a budget of its own: give --plan, or --vram for a plan to be made now")
    return plan if isinstance(plan, Plan) else find_plan(files, plan)


def plan_within(files: ModelFiles, use: Use, device: Device, vram: int) -> Plan:
    """A plan made now for a budget, with what being on the device really costs.

    Raises:
        UserError: more than the device has, no profile, or a budget that does not hold the model.
    """
    available = device.available
    free = Free(None, available) if device.kind == "cpu" else Free(available, 0)
    given = resolve(None, device.kind, vram, None, free)
    measured = given.hardware.context_bytes if given.hardware.measured else None  # what is nominal gives way to what is
    cost = context_cost(measured or 0, device.memory)
    settings = PlanSettings(
        vram=vram,
        context=use.context,
        mode=use.mode,
        batch=use.sequences,
        profile=use.profile,
        thresholds=use.thresholds,
        kv_format=use.kv_format,
        kv_pages=use.kv_pages,
    )
    return solve(files, settings, replace(given, hardware=replace(given.hardware, context_bytes=cost)))[1]


def automatic_plan(files: ModelFiles, use: Use, device: Device, note: Note) -> Plan | None:
    """The plan `default`, where there is one for this machine that fits now; else one made now for what is free.

    On a GPU, a model for which no plan can be made is computed on the CPU, and what stands in the way is told. What
    stands for a GPU has no memory of its own to be filled: there, a plan `default` has to say how much it takes.

    Raises:
        UserError: there is no plan for a stand-in.
    """
    if device.kind == "cpu" or files.has_plan(DEFAULT):
        try:
            default = find_plan(files, DEFAULT)
            assert default is not None, "it was named"
            check_same_model(files, default)
            problem = _unfit(files, default, use, device)
            if problem is None:
                return default
            budget = min(default.budgets.vram, _less_margin(device))
        except UserError as error:
            if device.kind == "cpu":
                raise
            problem, budget = str(error), _less_margin(device)
    else:
        problem, budget = f"{files.path} has no plan {DEFAULT}", _less_margin(device)
    try:
        made = plan_within(files, use, device, budget)
    except UserError as error:
        if device.kind == "cpu":
            raise
        note(f"computed on the CPU alone, as no plan could be made for the GPU: {error}")
        return None
    rows = sum(made.gpu_rows(layer) for layer in range(len(made.layers)))
    note(
        f"{problem}; planned now for {format_size(budget)} of the {format_size(device.available)} that are free, with "
        f"{rows:,} of {len(made.layers) * made.n_rows:,} neurons on the gpu; keep a plan with: "
        f"hybrid plan {files.path} --vram SIZE"
    )
    return made


def opened_fit(files: ModelFiles, plan: Plan, use: Use, device: Device) -> Fit:
    """How what opening a plan takes, used so, fits the device now.

    Raises:
        UserError: a context that the plan, or the model, has no room for.
    """
    context = choose_context(use.context, plan.budgets.context, files.spec.max_positions)
    predictors = find_outlines(files, use.profile) if use.mode == "predicted" else None
    sizes = model_sizes(files, predictors, context, plan.budgets.vram, use.kv_format, kv_pages=use.kv_pages)
    placement = replace(at(plan, use.sequences, context), mode=use.mode, sparse=plan.sparse or use.mode != "dense")
    taken, planned = account(sizes, placement)["gpu"], plan.bytes["gpu"]
    taken |= {"buffers": min(taken["buffers"], planned["buffers"]), CONTEXT: planned[CONTEXT]}
    return fit(taken, plan.budgets.vram, device.memory)


def _unfit(files: ModelFiles, plan: Plan, use: Use, device: Device) -> str | None:
    """Why the plan `default` does not serve here and now; None where it does."""
    here = this_machine("cuda") if device.kind == "cuda" else None
    if here is not None and plan.hardware_digest != here.digest:
        return f"the plan {DEFAULT} was made with the figures of {plan.hardware}, which are not this machine's"
    try:
        problem = opened_fit(files, plan, use, device).problem
    except UserError as error:
        return f"the plan {DEFAULT} does not serve: {error}"
    return None if problem is None else problem.replace("the plan", f"the plan {DEFAULT}", 1)


def _less_margin(device: Device) -> int:
    """What is taken where nobody says how much: now, so that only what others may want meanwhile is left."""
    return int(device.available * (1 - MARGIN_SHARE))
