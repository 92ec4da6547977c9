"""`hybrid simulate`: predicted speeds of a model by plans and by layer-wise offload, on machines that may not be here.

The model is a directory, or the shape of one of the papers' models (`placement.shapes`), whose profile is made up from
published figures. Nothing is run, and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hybrid.runtime.choices import DEFAULT_CONTEXT, check_kv_format, check_same_model, choose_context, known_mode
from hybrid.runtime.sizes import model_sizes
from hybrid.runtime.this_machine import this_machine
from hybrid.stages.finding import choose_mode, find_outlines, find_plan, find_profile
from hybrid.store.files import ModelFiles
from placement.baselines import everything_on_cpu, reloaded
from placement.cost import ModelSizes
from placement.explain import LAYER_WISE
from placement.frequencies import Frequencies
from placement.plan import MOST_CONTEXT, Budgets, Digests, Expected, Mode, Plan
from placement.planner import Request, finish_plan, place
from placement.shapes import ModelShape, read_shape
from placement.simulate import at
from profiler.artifacts import UserError
from profiler.hardware import Hardware, read_hardware, shipped_hardware
from profiler.predictor_outline import AnyPredictors

MARGIN = 1 << 30  # of a machine's memory, that plans leave to the driver, the system and, of a shape, the buffers
UNBOUND = Digests("0" * 64, "0" * 64, None)  # what is simulated is never written, so that it need not bind to files
PLANNED = "planned"
WITHOUT_GPU = (everything_on_cpu, reloaded)


@dataclass(frozen=True)
class SimulateSettings:
    """hardware: shipped names or files; none for this machine's measured figures. plan: one of the directory's, by name
    or path; None takes `default` if there is one and no `vram` is given, else a plan is made. baselines: layer-wise
    offload too, within the same budgets. vram, ram: bytes; None takes the machine's, less a margin. contexts: tokens;
    none for the model's own up to 4096. weight_format: of a shape.
    """

    hardware: tuple[str, ...] = ()
    plan: str | None = None
    baselines: bool = False
    vram: int | None = None
    ram: int | None = None
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = ()
    mode: str | None = None
    weight_format: str = "f16"
    profile: str = "default"
    kv_format: str = "f16"

    def __post_init__(self) -> None:
        check_kv_format(self.kv_format)
        if self.mode is not None:
            known_mode(self.mode)
        if self.plan is not None and (self.vram is not None or self.ram is not None):
            raise UserError("a plan has budgets of its own: give --plan, or --vram and --ram for a plan to be made")


@dataclass(frozen=True)
class Prediction:
    """What one placement should give on one machine. expected: None where it does not fit, and why."""

    hardware: str
    plan: str
    batch: int
    context: int
    vram: int
    ram: int | None
    gpu_rows: float | None = None
    expected: Expected | None = None
    problem: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all sequences together."""
        return None if self.expected is None else self.batch / self.expected.token_seconds


@dataclass(frozen=True)
class Machine:
    """Whose figures the predictions rest on."""

    name: str
    description: str
    measured: bool


@dataclass(frozen=True)
class SimulateReport:
    """Predicted, not measured. gpu_rows: share of the neurons in GPU memory."""

    model: str
    weight_format: str
    mode: Mode
    machines: tuple[Machine, ...]
    predictions: tuple[Prediction, ...]
    kind: Literal["predicted, not measured"] = "predicted, not measured"


@dataclass(frozen=True)
class _Model:
    """What is simulated: a directory with its profile, or a shape."""

    name: str
    weight_format: str
    mode: Mode
    frequencies: Frequencies
    trained: int | None
    files: ModelFiles | None = None
    predictors: AnyPredictors | None = None
    shape: ModelShape | None = None
    kv_format: str = "f16"

    def sizes(self, context: int, vram: int) -> ModelSizes:
        if self.files is not None:
            return model_sizes(self.files, self.predictors, context, vram, self.kv_format)
        assert self.shape is not None
        return self.shape.sizes(self.weight_format)


def simulate_directory(path: Path, settings: SimulateSettings) -> SimulateReport:
    """Predict for a model directory that was profiled.

    Raises:
        UserError: no profile, a plan of another model, unknown hardware, or budgets that are missing.
    """
    files = ModelFiles.open_files(path)
    profile = find_profile(files, settings.profile)
    predictors = find_outlines(files, settings.profile)
    name = settings.plan
    if name is None and settings.vram is None and settings.ram is None and files.has_plan("default"):
        name = "default"
    plan = find_plan(files, name)
    if plan is not None:
        check_same_model(files, plan)
    mode = plan.mode if plan is not None else choose_mode(settings.mode, files, predictors)
    if plan is not None and settings.mode not in (None, mode):
        raise UserError(f"the plan {plan.name} is for mode {mode}, not {settings.mode}; leave --mode out, or plan anew")
    if mode == "predicted" and predictors is None:
        raise UserError(f"predicted mode needs predictors; make them with: hybrid profile {path} --text FILE")
    if mode == "threshold" and not profile.thresholds:
        raise UserError(
            f"the profile {settings.profile!r} was not counted with thresholds, so it does not say which neurons they "
            f"leave; make one with: hybrid profile {path} --text FILE --thresholds default"
        )
    frequencies = Frequencies.in_row_order(profile, files.row_orders())
    model = _Model(
        name=str(path),
        weight_format=files.weight_format,
        mode=mode,
        frequencies=frequencies,
        trained=files.spec.max_positions,
        files=files,
        predictors=predictors,
        kv_format=settings.kv_format,
    )
    return _simulate(model, settings, plan, plan.name if plan else PLANNED)


def simulate_shape(name: str, settings: SimulateSettings) -> SimulateReport:
    """Predict for one of the papers' models.

    Raises:
        UserError: no such shape, unknown hardware, or a plan, which only a directory has.
    """
    if settings.plan is not None:
        raise UserError("a shape has no plans: leave --plan out, or name a model directory instead of --shape")
    shape = read_shape(name)
    mode = known_mode(settings.mode or "predicted")
    if mode == "threshold":
        raise UserError("a shape has no thresholds: choose --mode dense, exact or predicted")
    model = _Model(name, settings.weight_format, mode, shape.frequencies(), None, shape=shape)
    return _simulate(model, settings, None, PLANNED)


def _simulate(model: _Model, settings: SimulateSettings, plan: Plan | None, name: str) -> SimulateReport:
    machines = [read_hardware(hardware) for hardware in settings.hardware] or [_here()]
    trained = model.trained or MOST_CONTEXT
    planned = None if plan is None else plan.budgets.context
    contexts = settings.contexts or (planned or min(trained, DEFAULT_CONTEXT),)
    found: list[Prediction] = []
    for machine in machines:
        for context in contexts:
            choose_context(context, None, trained)
            for batch in settings.batches:
                budgets = _budgets(machine, settings, plan, context, batch)
                found.append(_by_plan(model, machine, budgets, plan, name))
                found += _layer_wise(model, machine, budgets) if settings.baselines else ()
    described = tuple(Machine(machine.name, machine.description, machine.measured) for machine in machines)
    return SimulateReport(model.name, model.weight_format, model.mode, described, tuple(found))


def _here() -> Hardware:
    machine = this_machine()
    if machine is None:
        raise UserError(
            f"name a machine with --hardware ({', '.join(shipped_hardware())}, or a JSON file), or measure this one "
            "with: hybrid hardware"
        )
    return machine


def _budgets(machine: Hardware, settings: SimulateSettings, plan: Plan | None, context: int, batch: int) -> Budgets:
    """Those of the plan or the settings, within the machine's memory; what it has where none are given."""
    vram, ram = (settings.vram, settings.ram) if plan is None else (plan.budgets.vram, plan.budgets.ram)
    gpu, cpu = machine.gpu.memory, machine.cpu.memory
    if vram is None:
        vram = max(0, (gpu or 0) - MARGIN)
    if ram is None and cpu is not None:
        ram = max(0, cpu - MARGIN)
    return Budgets(min(vram, gpu or vram), ram if cpu is None or ram is None else min(ram, cpu), context, batch)


def _by_plan(model: _Model, machine: Hardware, budgets: Budgets, plan: Plan | None, name: str) -> Prediction:
    """The plan as it is, or the best that can be made for the machine."""
    sizes = model.sizes(budgets.context, budgets.vram if plan is None else plan.budgets.vram)

    def placed() -> Plan:
        request = Request(sizes, model.frequencies, machine, model.mode)
        placement = place(request, budgets)[0] if plan is None else at(plan, budgets.batch, budgets.context)
        return finish_plan(
            replace(placement, budgets=budgets),
            name=name,
            digests=UNBOUND,
            sizes=sizes,
            frequencies=model.frequencies,
            hardware=machine,
        )

    return _prediction(machine, budgets, name, placed)


def _layer_wise(model: _Model, machine: Hardware, budgets: Budgets) -> list[Prediction]:
    """Every form of layer-wise offload, dense and without predictors; without a GPU, those that need none."""
    sizes = model.sizes(budgets.context, budgets.vram)
    bare = replace(sizes, predictor_bytes=(0,) * sizes.n_layers)
    makers = [make for make in LAYER_WISE if budgets.vram or make in WITHOUT_GPU]
    return [
        _prediction(
            machine,
            budgets,
            make.__name__.replace("_", "-"),
            partial(make, digests=UNBOUND, sizes=bare, hardware=machine, budgets=budgets),
        )
        for make in makers
    ]


def _prediction(machine: Hardware, budgets: Budgets, name: str, made: Callable[[], Plan]) -> Prediction:
    """What a plan should give, or why there is none."""
    asked = Prediction(machine.name, name, budgets.batch, budgets.context, budgets.vram, budgets.ram)
    try:
        plan = made()
    except UserError as error:
        return replace(asked, problem=str(error).splitlines()[0])
    rows = sum(plan.gpu_rows(layer) for layer in range(len(plan.layers)))
    return replace(asked, plan=plan.name, gpu_rows=rows / len(plan.layers) / plan.n_rows, expected=plan.expected)
