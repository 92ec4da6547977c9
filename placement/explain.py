"""Why a plan is what it is: what binds it, what more memory would buy, and what layer-wise offload would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from placement.baselines import attention_on_gpu, everything_on_cpu, first_layers_on_gpu, reloaded, streamed
from placement.plan import Budgets, Digests, Plan
from placement.planner import Request, place
from profiler.artifacts import UserError, format_size

STEP = 1 << 30  # of memory, that is asked for on trial
LAYER_WISE = (first_layers_on_gpu, attention_on_gpu, everything_on_cpu, streamed, reloaded)


@dataclass(frozen=True)
class More:
    """A plan with more memory: what it should give. memory: `vram` or `ram`; bytes: how much more."""

    memory: str
    bytes: int
    token_seconds: float


@dataclass(frozen=True)
class LayerWise:
    """A plan of layer-wise offload within the same budgets. token_seconds: None where it does not fit, and why."""

    name: str
    token_seconds: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Explanation:
    """binding: the constraint that keeps the plan from being faster, in words; left: bytes of each budget not used."""

    binding: str
    left: dict[str, int]
    more: tuple[More, ...]
    layer_wise: tuple[LayerWise, ...]


def explain(request: Request, plan: Plan) -> Explanation:
    """Solve again with a GiB more of each memory, and predict layer-wise offload on the same machine."""
    budgets = plan.budgets
    left = {"vram": budgets.vram - plan.total_bytes("gpu")}
    larger = {"vram": replace(budgets, vram=budgets.vram + STEP)}
    if budgets.ram is not None:
        left["ram"] = budgets.ram - plan.total_bytes("ram")
        larger["ram"] = replace(budgets, ram=budgets.ram + STEP)
    now = plan.expected.token_seconds
    # Within the gap another search may find a slower plan; a larger budget holds this one too.
    more = tuple(More(memory, STEP, min(now, _seconds(request, tried))) for memory, tried in larger.items())
    return Explanation(_binding(request, plan, more), left, more, layer_wise(request, budgets, plan.digests))


def layer_wise(request: Request, budgets: Budgets, digests: Digests) -> tuple[LayerWise, ...]:
    """What each form of layer-wise offload should give within the budgets, dense and without a predictor."""
    sizes = replace(request.sizes, predictor_bytes=(0,) * request.sizes.n_layers)

    def predicted(make: Callable[..., Plan]) -> LayerWise:
        try:
            plan = make(digests=digests, sizes=sizes, hardware=request.hardware, budgets=budgets)
        except UserError as error:
            return LayerWise(make.__name__.replace("_", "-"), None, str(error).splitlines()[0])
        return LayerWise(plan.name, plan.expected.token_seconds)

    return tuple(predicted(make) for make in LAYER_WISE if budgets.vram or make in (everything_on_cpu, reloaded))


def _seconds(request: Request, budgets: Budgets) -> float:
    placement, _ = place(request, budgets)
    return request.seconds(placement)


def _binding(request: Request, plan: Plan, more: tuple[More, ...]) -> str:
    """In words, what would have to change for the plan to be faster."""
    now = plan.expected.token_seconds
    gains = {one.memory: now / one.token_seconds - 1 for one in more}
    memory = max(gains, key=lambda name: gains[name])
    if plan.total_bytes("flash"):
        return f"RAM: {format_size(plan.total_bytes('flash'))} of neurons are left on flash"
    if not plan.budgets.vram:
        return "the speed of the CPU's memory: there is no GPU"
    if gains[memory] > request.gap:
        return f"{'GPU memory' if memory == 'vram' else 'RAM'}: more of it makes a faster plan"
    expected = plan.expected
    if expected.cpu_bytes == 0:
        return "the speed of the GPU's memory: everything is there"
    return "the balance of both units: memory is left, and moving more to the GPU would not be faster"
