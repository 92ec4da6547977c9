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

from hybrid.model.pages import KV_FORMATS
from hybrid.runtime.choices import DEFAULT_CONTEXT, check_kv_format, check_same_model, known_mode
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.stages.finding import find_plan
from hybrid.stages.plan import PlanSettings, read_request
from hybrid.stages.plan_defaults import Free, Given, resolve
from hybrid.store.files import ModelFiles
from placement.baselines import everything_on_cpu, reloaded
from placement.cost import gpu_computes
from placement.explain import LAYER_WISE
from placement.plan import MOST_CONTEXT, Budgets, Digests, Expected, Mode, Plan
from placement.planner import Request, finish_plan, place
from placement.prefill import CPU_TOKENS, PrefillCosts, prefill_step
from placement.shapes import read_shape
from placement.simulate import at, prompt_seconds
from profiler.artifacts import UserError
from profiler.formats import WEIGHT_FORMATS

UNBOUND = Digests("0" * 64, "0" * 64, None)  # what is simulated is never written: there is nothing to bind to
WITHOUT_GPU = (everything_on_cpu, reloaded)
PLANNED = "planned"
NO_MATTER = Free(None, 0)  # nothing is run: a budget may be larger than what is free of this machine's GPU
Ask = Callable[[Given, int], Request]  # the model on a machine, at a context


@dataclass(frozen=True)
class SimulateSettings:
    """hardware: shipped names or files; none for this machine. plan: one of the directory's, by name or path; None
    takes `default` if there is one and neither budgets nor another mode are given, else a plan is made. baselines:
    layer-wise offload too, within the same budgets. vram, ram: see `plan_defaults.resolve`. contexts: tokens; none for
    what a plan is for, else the model's own up to 4096. prompt: tokens of one that is read, 0 for none.
    weight_format: of a shape, f16 where None.
    """

    hardware: tuple[str, ...] = ()
    plan: str | None = None
    baselines: bool = False
    vram: int | None = None
    ram: int | None = None
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = ()
    prompt: int = 0
    mode: str | None = None
    weight_format: str | None = None
    profile: str = "default"
    thresholds: str = "default"
    kv_format: str = "f16"

    def __post_init__(self) -> None:
        check_kv_format(self.kv_format)
        if self.mode is not None:
            known_mode(self.mode)
        if self.weight_format not in (None, *WEIGHT_FORMATS):
            known = ", ".join(WEIGHT_FORMATS)
            raise UserError(f"format {self.weight_format!r:.40} of weights is not known; formats are {known}")
        if not 0 <= self.prompt <= MOST_CONTEXT:
            raise UserError(f"a prompt of {self.prompt} tokens makes no sense; give 1 to {MOST_CONTEXT}")
        if self.plan is not None and (self.vram is not None or self.ram is not None):
            raise UserError("a plan has budgets of its own: give --plan, or --vram and --ram for a plan to be made")


@dataclass(frozen=True)
class Prediction:
    """What one placement should give on a machine.

    gpu_rows: share of the neurons in GPU memory. tokens_per_second: of all sequences together. These and `expected`
    are None where the placement does not fit, and `problem` says why. prompt_seconds: of reading one sequence's prompt,
    where one was asked for; prompt_streamed: share of the layers whose rows in host memory the GPU computes in its
    steps.
    """

    plan: str
    batch: int
    context: int
    vram: int
    ram: int | None
    tokens_per_second: float | None = None
    gpu_rows: float | None = None
    expected: Expected | None = None
    prompt_seconds: float | None = None
    prompt_streamed: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Machine:
    """Whose figures predictions rest on: by context, batch and placement. measured: on it. notes: of the budgets."""

    name: str
    measured: bool
    notes: tuple[str, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class SimulateReport:
    """A model on machines."""

    model: str
    weight_format: str
    mode: Mode
    machines: tuple[Machine, ...]
    kind: Literal["predicted, not measured"] = "predicted, not measured"


def simulate_directory(path: Path, settings: SimulateSettings) -> SimulateReport:
    """Predict for a model directory that was profiled.

    Raises:
        UserError: no profile, a plan of another model or mode, unknown hardware, or budgets that are missing.
    """
    if settings.weight_format is not None:
        raise UserError(f"{path} has its weights in one format: --format is for --shape")
    files = ModelFiles.open_files(path)
    plan = _plan_of(files, settings)

    def ask(given: Given, context: int) -> Request:
        wanted = PlanSettings(
            context=context or None,
            mode=plan.mode if plan is not None else settings.mode,
            profile=settings.profile,
            thresholds=settings.thresholds,
            kv_format=settings.kv_format,
        )
        request = read_request(files, wanted, given)[0]
        # What the process takes of the GPU is the plan's, on whatever machine; a plan that is made here counts none.
        gpu_context = 0 if plan is None else plan.bytes["gpu"]["context"]
        return replace(request, sizes=replace(request.sizes, context_bytes=gpu_context))

    trained = min(files.spec.max_positions, DEFAULT_CONTEXT)
    return _simulate(str(path), settings, ask, plan, plan.budgets.context if plan else trained)


def simulate_shape(name: str, settings: SimulateSettings) -> SimulateReport:
    """Predict for one of the papers' models.

    Raises:
        UserError: no such shape, unknown hardware, or a plan, which only a directory has.
    """
    if settings.plan is not None:
        raise UserError("a shape has no plans: leave --plan out, or name a model directory instead of --shape")
    mode = known_mode(settings.mode or "predicted")
    if mode == "threshold":
        raise UserError("a shape has no thresholds: choose --mode dense, exact or predicted")
    shape = read_shape(name)
    sizes = shape.sizes(settings.weight_format or "f16", kv_bytes=KV_FORMATS[settings.kv_format])
    frequencies = shape.frequencies()
    return _simulate(name, settings, lambda given, _: Request(sizes, frequencies, given.hardware, mode), None)


def _plan_of(files: ModelFiles, settings: SimulateSettings) -> Plan | None:
    """The plan that is asked for, or the one that the directory has, unless something else is asked for."""
    plan = find_plan(files, settings.plan)
    if plan is None and settings.vram is None and settings.ram is None and files.has_plan("default"):
        plan = find_plan(files, "default")
        if plan is not None and settings.mode not in (None, plan.mode):
            plan = None
    if plan is None:
        return None
    check_same_model(files, plan)
    if settings.mode not in (None, plan.mode):
        raise UserError(f"the plan {plan.name} is for mode {plan.mode}, not {settings.mode}; leave --mode out")
    return plan


def _simulate(
    name: str, settings: SimulateSettings, ask: Ask, plan: Plan | None, context: int = DEFAULT_CONTEXT
) -> SimulateReport:
    vram, ram = (settings.vram, settings.ram) if plan is None else (plan.budgets.vram, plan.budgets.ram)
    machines: list[Machine] = []
    for hardware in settings.hardware or (None,):
        given = resolve(hardware, None, vram, ram, None if vram is None else NO_MATTER)
        found: list[Prediction] = []
        for tokens in settings.contexts or (context,):
            request = ask(given, tokens)
            for batch in settings.batches:
                budgets = _within(given, tokens, batch)
                found.append(_by_plan(request, budgets, plan, settings.prompt))
                found += _layer_wise(request, budgets, settings.prompt) if settings.baselines else ()
        machines.append(Machine(given.hardware.name, given.hardware.measured, given.notes, tuple(found)))
    return SimulateReport(name, request.sizes.weight_format, request.mode, tuple(machines))


def _within(given: Given, context: int, batch: int) -> Budgets:
    """The budgets, where the machine has so much."""
    gpu, cpu = given.hardware.gpu.memory, given.hardware.cpu.memory
    ram = given.ram if cpu is None or given.ram is None else min(given.ram, cpu)
    return Budgets(min(given.vram, gpu or given.vram), ram, context, batch)


def _by_plan(request: Request, budgets: Budgets, plan: Plan | None, prompt: int) -> Prediction:
    """The plan as it is, or the best that can be made for the machine."""

    def made() -> Plan:
        placement = place(request, budgets)[0] if plan is None else at(plan, budgets.batch, budgets.context)
        return finish_plan(
            replace(placement, budgets=budgets),
            name=PLANNED if plan is None else plan.name,
            digests=UNBOUND,
            sizes=request.sizes,
            frequencies=request.frequencies,
            hardware=request.hardware,
        )

    return _prediction(request, budgets, PLANNED if plan is None else plan.name, made, prompt)


def _layer_wise(request: Request, budgets: Budgets, prompt: int) -> list[Prediction]:
    """Every form of layer-wise offload, dense and without predictors; without a GPU, those that need none."""
    bare = replace(request.sizes, predictor_bytes=(0,) * request.sizes.n_layers)

    def predicted(make: Callable[..., Plan]) -> Prediction:
        made = partial(make, digests=UNBOUND, sizes=bare, hardware=request.hardware, budgets=budgets)
        return _prediction(replace(request, sizes=bare), budgets, make.__name__.replace("_", "-"), made, prompt)

    return [predicted(make) for make in LAYER_WISE if budgets.vram or make in WITHOUT_GPU]


def _prediction(request: Request, budgets: Budgets, name: str, made: Callable[[], Plan], prompt: int) -> Prediction:
    """What a plan should give, or why there is none."""
    asked = Prediction(name, budgets.batch, budgets.context, budgets.vram, budgets.ram)
    try:
        plan = made()
    except UserError as error:
        return replace(asked, problem=str(error).splitlines()[0])
    return replace(
        _with_prompt(asked, request, plan, prompt) if prompt else asked,
        plan=plan.name,
        tokens_per_second=budgets.batch / plan.expected.token_seconds,
        gpu_rows=plan.rows_on_gpu / len(plan.layers) / plan.n_rows,
        expected=plan.expected,
    )


def _with_prompt(asked: Prediction, request: Request, plan: Plan, tokens: int) -> Prediction:
    """With what reading a prompt takes: in pieces as the engine takes them, each layer's rows in the faster way."""
    model = (request.sizes, request.frequencies, request.hardware, plan)
    piece = PREFILL_TOKENS if gpu_computes(plan) else CPU_TOKENS
    ways = PrefillCosts(*model).ways(min(piece, tokens))
    seconds = prompt_seconds(*model, tokens, chunk=piece, step=prefill_step)
    return replace(asked, prompt_seconds=seconds, prompt_streamed=sum(way.streams for way in ways) / len(ways))
