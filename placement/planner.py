"""From sizes, frequencies, figures and budgets to a plan: the integer program's, or caching by frequency if better."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.cost import ModelSizes, account, require_fit
from placement.formulate import formulate, in_groups, to_placement
from placement.frequencies import Frequencies
from placement.greedy import keep_more, top_k
from placement.latency import token_seconds
from placement.plan import Budgets, Digests, Mode, Objective, Placement, Plan, SolverName, SolverReport
from placement.problem import Choice, Numbers, PlacementProblem
from placement.solve import GAP, TIME_LIMIT, NoPlacementError, solve
from profiler.artifacts import UserError, format_size
from profiler.hardware import Hardware


@dataclass(frozen=True)
class Request:
    """What a plan is asked for, its budgets aside: the model, the machine, the mode, and how to search."""

    sizes: ModelSizes
    frequencies: Frequencies
    hardware: Hardware
    mode: Mode
    objective: Objective = "latency"
    time_limit: float = TIME_LIMIT
    gap: float = GAP
    solver: SolverName | None = None

    def __post_init__(self) -> None:
        sizes = self.sizes
        if self.frequencies.active.shape != (sizes.n_layers, sizes.n_rows):
            raise UserError(
                f"the profile counts {self.frequencies.active.shape} layers and neurons, the model has "
                f"{(sizes.n_layers, sizes.n_rows)}; profile it anew with: hybrid profile DIR --text FILE"
            )

    def seconds(self, placement: Placement) -> float:
        """Predicted seconds of a decode step."""
        return token_seconds(self.sizes, self.frequencies, self.hardware, placement).token_seconds


def make_plan(request: Request, budgets: Budgets, *, name: str, digests: Digests) -> Plan:
    """A plan that keeps its budgets to the byte.

    latency: the time of a step is least (docs/placement.md), and never above that of the hottest rows on the GPU beside
    the same dense parts; impact: the frequency on the GPU is greatest (PowerInfer, §6.3). The rest stays in RAM, or on
    flash where `budgets.ram` is too small and the drive's figures are known. A budget of 0 bytes of GPU memory says
    that there is no GPU: everything is in RAM and nothing is handed over.

    Raises:
        UserError: the model does not fit: how many bytes are missing, for what, and what to change.
    """
    placement, report = place(request, budgets)
    return finish_plan(
        placement,
        name=name,
        digests=digests,
        sizes=request.sizes,
        frequencies=request.frequencies,
        hardware=request.hardware,
        solver=report,
    )


def place(request: Request, budgets: Budgets) -> tuple[Placement, SolverReport]:
    """The best placement that is found within the budgets, and how it was found.

    RAM is left out at first, and no solver is asked: where the best placement keeps it too, no other can be better.

    Raises:
        UserError: the model does not fit.
    """
    problem = _formulate(request, replace(budgets, ram=None))
    choice, report = _solve(request if budgets.ram is None else replace(request, solver="greedy"), problem)
    if budgets.ram is not None:
        limited = _formulate(request, budgets, flash=bool(request.hardware.flash))
        settled = report.status == "optimal" and request.solver in (None, "greedy")
        if not (settled and limited.fits(choice)):
            problem = limited
            try:
                choice, report = _solve(request, problem)
            except NoPlacementError as error:
                raise UserError(_missing(request, problem, budgets)) from error
    warnings = [*report.warnings, *_remarks(request, problem, choice, budgets)]
    return to_placement(problem, choice, request.mode, budgets), replace(report, warnings=tuple(warnings))


def _formulate(request: Request, budgets: Budgets, *, flash: bool = False) -> PlacementProblem:
    return formulate(
        request.sizes, request.frequencies, request.hardware, budgets, request.mode, request.objective, flash=flash
    )


def _solve(request: Request, problem: PlacementProblem) -> tuple[Choice, SolverReport]:
    """The solver's choice, or that of caching by frequency where it costs less; with RAM filled up in any case."""
    choice, report = solve(problem, time_limit=request.time_limit, gap=request.gap, solver=request.solver)
    heat = hotness(request, problem)
    hottest = top_k(problem, heat, choice)
    if problem.allows(hottest) and problem.cost(hottest) < report.cost:
        # Within the gap, frequency may find what the solver left.
        gap = None if report.gap is None else max(0.0, 1 - (1 - report.gap) * report.cost / problem.cost(hottest))
        status = "optimal" if gap is not None and gap <= request.gap else report.status
        choice, report = hottest, replace(report, name="greedy", status=status, gap=gap)
    choice = keep_more(problem, heat, choice)
    return choice, replace(report, cost=problem.cost(choice))


def hotness(request: Request, problem: PlacementProblem) -> Numbers:
    """How often a row of each group is active on average, `[layers, groups]`."""
    return in_groups(request.frequencies.active, problem.groups) / problem.groups


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


def _missing(request: Request, problem: PlacementProblem, budgets: Budgets) -> str:
    """What to say where nothing keeps both budgets."""
    sizes = request.sizes
    rows = 0 if problem.flash is not None else sizes.n_layers * sizes.n_rows * sizes.whole_row_bytes
    dense = int(problem.attention.bytes.sum() + problem.ends.bytes.sum())
    room = problem.vram + (problem.ram or 0)
    buffers = f"{format_size(sizes.buffer_bytes)} of work buffers on each unit"
    if sizes.context_bytes:
        buffers += f" and {format_size(sizes.context_bytes)} of CUDA context"
    what = f"{format_size(dense)} of attention, KV pages, predictors, embeddings and head"
    what += f", {format_size(rows)} of neurons" if rows else ""
    missing = max(dense + rows - room, 0)
    short = f"{missing} bytes ({format_size(missing)}) are missing" if missing else "no cut of the layers fits both"
    flash = "" if request.hardware.flash else ", or figures of a drive to leave neurons on: hybrid hardware"
    return (
        f"the plan does not fit: {what} have no place in the {format_size(problem.vram)} that --vram leaves and the "
        f"{format_size(problem.ram or 0)} that --ram leaves beside {buffers}: {short}; give more of either, a smaller "
        f"--context{flash}"
    )


def _overhead(sizes: ModelSizes) -> str:
    buffers = f"{format_size(sizes.buffer_bytes)} of buffers"
    return f"{buffers} and {format_size(sizes.context_bytes)} of CUDA context" if sizes.context_bytes else buffers


def _remarks(request: Request, problem: PlacementProblem, choice: Choice, budgets: Budgets) -> list[str]:
    """What a user should know of the answer."""
    found = []
    sizes, hardware = request.sizes, request.hardware
    on_flash = sum(sizes.n_rows - int(problem.ends_of_groups[kept]) for kept in choice.kept)
    if on_flash:
        size = on_flash * sizes.whole_row_bytes
        found.append(
            f"{size} bytes of neurons ({format_size(size)}) stay on flash and "
            "are read by page faults, one row at a time: a larger --ram would help most"
        )
    if budgets.vram and not any(choice.cuts):
        gpu, cpu = (unit.speed(sizes.weight_format).rows / 1e9 for unit in (hardware.gpu, hardware.cpu))
        reason = "no placement with some there is faster"
        if problem.vram < problem.row_bytes * int(problem.groups.min()):
            reason = f"--vram leaves {format_size(problem.vram)} beside {_overhead(sizes)}"
        elif gpu <= cpu:
            reason = f"its memory ({gpu:g} GB/s) is not faster than the CPU's ({cpu:g} GB/s)"
        elif problem.least[0] is None:
            reason = (
                f"the {sizes.n_rows} rows of a layer are too few to repay a synchronisation of "
                f"{hardware.sync * 1e6:g} µs"
            )
        found.append(f"no neuron is on the GPU: {reason}")
    return found
