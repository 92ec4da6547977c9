"""From sizes, frequencies, figures and budgets to a plan: dense parts to the GPU first, then neurons by the solver."""

from __future__ import annotations

from dataclasses import replace

from placement.cost import ModelSizes, account, require_fit
from placement.frequencies import Frequencies
from placement.latency import token_seconds
from placement.plan import Budgets, Digests, LayerPlan, Mode, Placement, Plan, Segment, SolverName, SolverReport, Unit
from placement.problem import SplitProblem, group_by, least_rows
from placement.solve import GAP, TIME_LIMIT, solve
from profiler.artifacts import UserError, format_size
from profiler.hardware import Hardware


def make_plan(
    *,
    name: str,
    digests: Digests,
    sizes: ModelSizes,
    frequencies: Frequencies,
    hardware: Hardware,
    budgets: Budgets,
    mode: Mode,
    time_limit: float = TIME_LIMIT,
    gap: float = GAP,
    solver: SolverName | None = None,
) -> Plan:
    """A plan that keeps its budgets to the byte.

    Attention, KV pages, predictors, embeddings, head and buffers go to the GPU; each layer's hottest rows fill what
    remains, so that the summed frequency of the GPU's rows is largest (PowerInfer, §6.3); all others stay in RAM. A
    budget of 0 bytes of GPU memory says that there is no GPU: everything is in RAM and nothing is handed over. mode
    decides what is expected of the plan, and whether predictors take memory, not which rows are hot.

    Raises:
        UserError: the dense parts do not fit on the GPU, or what is left does not fit in RAM: how many bytes are
            missing, for what, and what to change.
    """
    if frequencies.active.shape != (sizes.n_layers, sizes.n_rows):
        raise UserError(
            f"the profile counts {frequencies.active.shape} layers and neurons, the model has "
            f"{(sizes.n_layers, sizes.n_rows)}; profile it anew with: hybrid profile DIR --text FILE"
        )
    dense_unit: Unit = "gpu" if budgets.vram else "cpu"
    placement = Placement(
        mode=mode,
        sparse=True,
        budgets=budgets,
        n_rows=sizes.n_rows,
        embeddings=dense_unit,
        head=dense_unit,
        layers=tuple(split_layer(sizes.n_rows, 0, dense_unit) for _ in range(sizes.n_layers)),
    )
    report = None
    if budgets.vram:
        cuts, report = _split(sizes, frequencies, hardware, placement, time_limit, gap, solver)
        placement = replace(placement, layers=tuple(split_layer(sizes.n_rows, cut, "gpu") for cut in cuts))
    return finish_plan(
        placement,
        name=name,
        digests=digests,
        sizes=sizes,
        frequencies=frequencies,
        hardware=hardware,
        solver=report,
    )


def split_layer(n_rows: int, cut: int, attention: Unit) -> LayerPlan:
    """A layer whose first `cut` rows live and are computed on the GPU, the others in RAM and on the CPU."""
    segments = []
    if cut:
        segments.append(Segment(0, cut, "gpu", "gpu"))
    if cut < n_rows:
        segments.append(Segment(cut, n_rows, "ram", "cpu"))
    return LayerPlan(attention, tuple(segments))


def finish_plan(
    placement: Placement,
    *,
    name: str,
    digests: Digests,
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    hardware: Hardware,
    solver: SolverReport | None = None,
) -> Plan:
    """The plan of a placement: its bytes counted, its time predicted, its budgets checked.

    Raises:
        UserError: a budget is exceeded.
    """
    taken = account(sizes, placement)
    budgets = placement.budgets
    require_fit(taken["gpu"], budgets.vram, "--vram", context_remedy(sizes, placement, taken["gpu"], budgets.vram))
    if budgets.ram is not None:
        remedy = context_remedy(sizes, placement, taken["ram"], budgets.ram)
        require_fit(taken["ram"], budgets.ram, "--ram", remedy)
    return Plan(
        **vars(placement),
        name=name,
        digests=digests,
        hardware=hardware.name,
        hardware_digest=hardware.digest,
        bytes=taken,
        expected=token_seconds(sizes, frequencies, hardware, placement),
        solver=solver,
    )


def context_remedy(sizes: ModelSizes, placement: Placement, taken: dict[str, int], budget: int) -> str:
    """How far a smaller context would mend what does not fit: empty where it would not."""
    pages = -(-placement.budgets.context // sizes.kv_page_tokens)
    page_bytes = taken["kv"] // pages
    fitting = (budget - sum(taken.values()) + taken["kv"]) // page_bytes if page_bytes else 0
    return f", or --context {fitting * sizes.kv_page_tokens} or less" if fitting > 0 else ""


def _split(
    sizes: ModelSizes,
    frequencies: Frequencies,
    hardware: Hardware,
    placement: Placement,
    time_limit: float,
    gap: float,
    solver: SolverName | None,
) -> tuple[list[int], SolverReport]:
    """Rows of each layer on the GPU, beside the dense parts of a placement that has no neuron there yet."""
    taken = account(sizes, placement)
    budgets = placement.budgets
    require_fit(taken["gpu"], budgets.vram, "--vram", context_remedy(sizes, placement, taken["gpu"], budgets.vram))
    capacity = (budgets.vram - sum(taken["gpu"].values())) // sizes.whole_row_bytes
    required = 0
    if budgets.ram is not None:
        over = sum(taken["ram"].values()) - budgets.ram
        required = max(0, -(-over // sizes.whole_row_bytes))
    all_rows = sizes.n_layers * sizes.n_rows
    if required > min(capacity, all_rows):
        missing = (required - min(capacity, all_rows)) * sizes.whole_row_bytes
        raise UserError(
            f"the plan does not fit: {format_size(all_rows * sizes.whole_row_bytes)} of neurons have no place in the "
            f"{format_size(capacity * sizes.whole_row_bytes)} that --vram leaves for them and the --ram of "
            f"{format_size(budgets.ram or 0)}: {missing} bytes are missing; give more of either, or a smaller --context"
        )
    values, group_rows = group_by(frequencies.active)
    least = least_rows(sizes, hardware)
    problem = SplitProblem(values, group_rows, capacity, required, (least,) * sizes.n_layers)
    cuts, report = solve(problem, time_limit=time_limit, gap=gap, solver=solver)
    if least is None:
        report = replace(report, warnings=(*report.warnings, _nothing_gained(sizes, hardware)))
    return [problem.rows_of(cut) for cut in cuts], report


def _nothing_gained(sizes: ModelSizes, hardware: Hardware) -> str:
    gpu, cpu = hardware.gpu.bandwidth / 1e9, hardware.cpu.bandwidth / 1e9
    if gpu <= cpu:
        return f"no neuron is on the GPU: its memory ({gpu:g} GB/s) is not faster than the CPU's ({cpu:g} GB/s)"
    return (
        f"no neuron is on the GPU: the {sizes.n_rows} rows of a layer are too few to repay a synchronisation of "
        f"{hardware.sync * 1e6:g} µs"
    )
