"""Which plan a model is opened with: the one that is named; else one that suits the machine as it is now.

Nothing is written to the model directory: plans that are made here are kept in the cache, for budgets that are rounded
so that the next command finds them. No torch: what the device has is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.runtime.choices import check_same_model, choose_context
from hybrid.runtime.memory import available_memory
from hybrid.runtime.sizes import model_sizes
from hybrid.runtime.this_machine import SecondDevice, this_machine
from hybrid.runtime.vram import CONTEXT, DeviceMemory, Fit, context_cost, fit
from hybrid.stages.finding import find_outlines, find_plan
from hybrid.stages.kept_plans import NAME, find_kept, keep, kept_path
from hybrid.stages.plan import PlanSettings, read_request
from hybrid.stages.plan_defaults import MARGIN_SHARE, Free, ram_note, resolve
from hybrid.store.files import ModelFiles
from placement.cost import account
from placement.plan import Budgets, Mode, Plan
from placement.planner import make_plan
from placement.simulate import at
from profiler.artifacts import UserError, format_size
from profiler.hardware import read_hardware

DEFAULT = "default"
TYPICAL_DRIVE = "cpu-only"  # the shipped figures whose drive stands for one that was not measured
SOLVING = 2.0  # seconds that a solver may take before a command begins, where nearness to the best is not yet proved
ROUNDING = 4  # bits: what is free counts down to a sixteenth of the power of two below it, as it changes a little
MIB = 1 << 20
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


@dataclass(frozen=True)
class Choice:
    """A plan, None where all of the model is computed in place by the CPU; and how it was come by, for a user."""

    plan: Plan | None
    how: str


def choose_plan(files: ModelFiles, plan: str | Path | Plan | None, vram: int | None, ram: int | None) -> Plan | None:
    """The plan that is named, as it is; None where none is.

    Raises:
        UserError: there is none of that name, or a budget is named too.
    """
    if plan is not None and (vram is not None or ram is not None):
        raise UserError(
            "a plan has budgets of its own: give --plan, or --vram and --ram for a plan to be made for what they say"
        )
    return plan if isinstance(plan, Plan) else find_plan(files, plan)


def plan_within(
    files: ModelFiles, use: Use, device: Device | None, vram: int, ram: int | None = None, free: int | None = None
) -> Choice:
    """A plan for budgets, made now or kept from before, with what being on the device really costs.

    device: None, with no budget for it, plans for the CPU alone. free: bytes of the device of which the budget is what
    is taken where nobody says how much. A model that was not profiled is planned for as if every neuron were active.

    Raises:
        UserError: more than the device has, no profile where the mode needs one, or budgets that do not hold the model.
    """
    if device is None:
        given = resolve(None, None, 0, ram, Free(None, available_memory()))
    else:
        here = Free(None, device.available) if device.kind == "cpu" else Free(device.available, 0)
        given = resolve(None, device.kind, vram, ram, here)
        measured = given.hardware.context_bytes if given.hardware.measured else None  # what is nominal gives way
        cost = -(-context_cost(measured or 0, device.memory) // MIB) * MIB
        given = replace(given, hardware=replace(given.hardware, context_bytes=cost))
    if ram is not None and not given.hardware.flash:
        drive = read_hardware(TYPICAL_DRIVE).flash
        given = replace(given, hardware=replace(given.hardware, flash=drive))
    settings = PlanSettings(
        vram=vram,
        ram=ram,
        context=use.context,
        mode=use.mode,
        batch=use.sequences,
        profile=use.profile,
        thresholds=use.thresholds,
        kv_format=use.kv_format,
        kv_pages=use.kv_pages,
        time_limit=SOLVING,
        unprofiled=True,
    )
    request, found = read_request(files, settings, given)
    budgets = Budgets(vram, ram, choose_context(use.context, None, files.spec.max_positions), use.sequences)
    path = kept_path(request, budgets, found)
    plan = find_kept(path, budgets, found)
    came = "planned now for" if plan is None else "by the plan made before for"
    if plan is None:
        plan = make_plan(request, budgets, name=NAME, digests=found)
        keep(path, plan)
    return Choice(plan, f"{came} {_budgets_line(plan, free)}{_parts_line(plan)}")


def automatic_plan(files: ModelFiles, use: Use, device: Device, note: Note, ram: int | None = None) -> Choice:
    """The plan `default`, where there is one for this machine that fits now; else one for what is free, and for `ram`.

    On a GPU, a model for which no plan can be made is computed on the CPU, and what stands in the way is told. What
    stands for a GPU has no memory of its own to be filled: there, a plan `default` has to say how much it takes.

    Raises:
        UserError: there is no plan for a stand-in.
    """
    budget = _less_margin(device)
    if device.kind == "cpu" and ram is not None:
        raise UserError("--ram says nothing of what stands for a GPU: give its size with --vram")
    if ram is None and (device.kind == "cpu" or files.has_plan(DEFAULT)):
        try:
            default = find_plan(files, DEFAULT)
            assert default is not None, "it was named"
            check_same_model(files, default)
            problem = _unfit(files, default, use, device)
            if problem is None:
                return Choice(default, f"by the plan {DEFAULT} for {_budgets_line(default)}{_parts_line(default)}")
            budget = min(default.budgets.vram, budget)
        except UserError as error:
            if device.kind == "cpu":
                raise
            problem = str(error)
        note(f"{problem}; make it anew with: hybrid plan {files.path} --vram SIZE")
    try:
        return plan_within(files, use, device, budget, ram, free=device.available)
    except UserError as error:
        if device.kind == "cpu":
            raise
        note(f"computed on the CPU alone, as no plan could be made for the GPU: {error}")
        return host_choice(files, use, ram)


def host_choice(files: ModelFiles, use: Use, ram: int | None) -> Choice:
    """The CPU alone: the model in place, or by a plan that says which neurons stay on the drive.

    Raises:
        UserError: as `plan_within`.
    """
    if ram is not None:
        return plan_within(files, use, None, 0, ram)
    note = ram_note(files.weight_bytes)
    return Choice(None, "all of it on the CPU" + (f"; {note}" if note else f", {format_size(files.weight_bytes)}"))


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
    return rounded(int(device.available * (1 - MARGIN_SHARE)))


def rounded(size: int) -> int:
    """Bytes down to a multiple of a sixteenth of the power of two below: a plan for them serves again when a little
    more or less is free.
    """
    step = 1 << max(0, size.bit_length() - 1 - ROUNDING)
    return size - size % step


def _budgets_line(plan: Plan, free: int | None = None) -> str:
    """The budgets, for a user: of a GPU if it is used, and of RAM if it is limited."""
    vram, ram = plan.budgets.vram, plan.budgets.ram
    of_free = "of GPU memory" if free is None else f"of the {format_size(free)} that are free on the GPU"
    parts = [f"{format_size(vram)} {of_free}"] if vram else []
    parts += [] if ram is None else [f"{format_size(ram)} of RAM"]
    return " and ".join(parts) or "the CPU alone"


def _parts_line(plan: Plan) -> str:
    """Where neurons are that are not in RAM, and whether the rest has room there."""
    found = ""
    if plan.budgets.vram:
        found = f", {plan.rows_on_gpu:,} of {plan.rows:,} neurons on the gpu"
    if flash := plan.total_bytes("flash"):
        found += f", {format_size(flash)} of neurons on the drive"
    note = ram_note(plan.total_bytes("ram"))
    return f"{found}; {note}" if note else found
