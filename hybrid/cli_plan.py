"""`hybrid plan` on the command line, and a plan as people read it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import (
    ContextOption,
    Device,
    JsonOption,
    KvFormat,
    KvOption,
    Mode,
    ModelArgument,
    ThresholdsOption,
    device_name,
    model_directory,
)
from hybrid.exits import loading
from hybrid.reports import table
from profiler.artifacts import format_size, parse_size

if TYPE_CHECKING:
    from hybrid.stages.plan import PlanReport
    from placement.explain import Explanation
    from placement.plan import Memory, Plan


class Objective(str, Enum):
    """What a plan is best at."""

    latency = "latency"
    impact = "impact"


class Solver(str, Enum):
    """Who looks for a plan."""

    highs = "highs"
    cbc = "cbc"
    greedy = "greedy"


def plan(
    model: ModelArgument,
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes that the GPU may hold, such as 8GiB; by default what is free now."),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes that host memory may hold; not limited by default."),
    ] = None,
    context: ContextOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that decode together.")] = 1,
    mode: Annotated[Mode | None, typer.Option(help="The mode that the plan is for.")] = None,
    objective: Annotated[
        Objective,
        typer.Option(help="latency: the least time for a token. impact: the most activations on the GPU (PowerInfer)."),
    ] = Objective.latency,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A machine of `hybrid hardware --list`, or a file; by default this one."),
    ] = None,
    second_device: Annotated[
        Device | None,
        typer.Option("--second-device", help="Plan with this machine's figures for `cuda`, or for the stand-in `cpu`."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what binds the plan, what more memory would buy, and what others do.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the plan in the directory.")] = "default",
    profile_name: Annotated[str, typer.Option("--profile", help="The profile that counts.")] = "default",
    thresholds: ThresholdsOption = "default",
    kv_format: KvOption = KvFormat.f16,
    solver: Annotated[Solver | None, typer.Option(help="Ask this solver, even where none is needed.")] = None,
    time_limit: Annotated[float, typer.Option(min=0.0, help="Seconds that the solver may take.")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Solve for where each neuron, and everything else, lives within budgets of memory.

    The plan is within a thousandth of the best there is, and says so where it cannot prove it. Its times are predicted
    from figures of the machine: `hybrid hardware` measures this one, others are known by name.

    Example: hybrid plan demo --vram 7MiB

    Example: hybrid plan relu7b --vram 8GiB --ram 16GiB --hardware rtx4060-laptop --explain
    """
    with loading():
        from hybrid.stages.plan import PlanSettings
        from hybrid.stages.plan import plan as run_stage

    settings = PlanSettings(
        vram=None if vram is None else parse_size(vram),
        ram=None if ram is None else parse_size(ram),
        context=context,
        mode=None if mode is None else mode.value,
        batch=batch,
        objective=objective.value,
        hardware=hardware,
        second_device=device_name(second_device),
        name=name,
        profile=profile_name,
        thresholds=thresholds,
        kv_format=kv_format.value,
        solver=None if solver is None else solver.value,
        time_limit=time_limit,
        explain=explain,
    )
    report = run_stage(model_directory(model), settings)
    display.show(as_json, "hybrid.plan/1", report, lambda: plan_lines(report))


def plan_lines(report: PlanReport) -> list[str]:
    """Where every byte goes, how long a token should take, and how good the plan is known to be."""
    plan, solver = report.plan, report.plan.solver
    budgets = plan.budgets
    batch = "" if budgets.batch == 1 else f", batches of {budgets.batch}"
    lines = [f"{report.path}: {plan.mode} mode on {plan.hardware}, context {budgets.context}{batch}"]
    lines += [f"note: {note}" for note in report.notes]
    lines += ["", *_bytes_lines(plan), ""]
    rows = ", ".join(str(plan.gpu_rows(i)) for i in range(len(plan.layers)))
    share = f"{plan.rows_on_gpu:,} of {plan.rows:,} ({plan.rows_on_gpu / plan.rows:.1%})"
    lines.append(f"rows on the gpu: {share}; by layer {rows}")
    units = [layer.attention for layer in plan.layers]
    lines.append(
        f"attention on the gpu: {units.count('gpu')} of {len(units)} layers; embeddings on the {plan.embeddings}, "
        f"head on the {plan.head}"
    )
    lines += _time_lines(report)
    if solver is not None:
        gap = "unknown gap" if solver.gap is None else f"gap {solver.gap:.3%}"
        lines.append(
            f"{solver.objective}: {solver.status}, {gap}, found by {solver.name} in {solver.seconds:.2f} s"
            + ("" if solver.status == "optimal" else "; not proved to be the best")
        )
        lines += [f"warning: {warning}" for warning in solver.warnings]
    return lines if report.explanation is None else [*lines, "", *_explained(plan, report.explanation)]


def _bytes_lines(plan: Plan) -> list[str]:
    memories: list[Memory] = [memory for memory in plan.bytes if any(plan.bytes[memory].values())]
    purposes = [purpose for purpose in plan.bytes["ram"] if any(plan.bytes[m][purpose] for m in memories)]
    rows = [[purpose, *(_size(plan.bytes[m][purpose]) for m in memories)] for purpose in purposes]
    rows.append(["total", *(_size(plan.total_bytes(m)) for m in memories)])
    budgets = ["-" if plan.budget(m) is None else format_size(plan.budget(m) or 0) for m in memories]
    return table(["bytes of", *memories], [*rows, ["budget", *budgets]])


def _size(size: int) -> str:
    return format_size(size) if size else "-"


def _time_lines(report: PlanReport) -> list[str]:
    plan, expected = report.plan, report.plan.expected
    source = "measured on this machine" if report.measured else "nominal or from data sheets, not measured"
    parts = ", ".join(
        f"{name} {seconds * 1e3:.3g} ms"
        for name, seconds in (
            ("attention", expected.attention_seconds),
            ("feed-forward", expected.ffn_seconds),
            ("head", expected.head_seconds),
            ("hand-overs", expected.transfer_seconds),
        )
    )
    rate = plan.budgets.batch / expected.token_seconds
    busy = f"the gpu works {expected.gpu_seconds * 1e3:.3g} ms of it and the cpu {expected.cpu_seconds * 1e3:.3g} ms"
    read = f"{format_size(int(expected.gpu_bytes))} on the gpu, {format_size(int(expected.cpu_bytes))} on the cpu"
    flash = f", {format_size(int(expected.flash_bytes))} of these from flash" if expected.flash_bytes else ""
    step = f"{expected.token_seconds * 1e3:.3g} ms a step"
    return [
        f"predicted: {_rate(rate)} tokens/s at the full context, {step} ({parts})",
        f"  {busy}; a step reads {read}{flash}",
        f"  by the figures of {plan.hardware}, which are {source}",
    ]


def _explained(plan: Plan, explanation: Explanation) -> list[str]:
    now = plan.expected.token_seconds
    names = {"vram": "--vram", "ram": "--ram"}
    left = ", ".join(f"{format_size(size)} of {names[memory]}" for memory, size in explanation.left.items())
    lines = [f"what binds: {explanation.binding}", f"left over: {left}"]
    for one in explanation.more:
        rate = plan.budgets.batch / one.token_seconds
        gain = f"{_rate(rate)} tokens/s, {now / one.token_seconds - 1:+.1%}"
        lines.append(f"{format_size(one.bytes)} more {names[one.memory]}: {gain}")
    rows = [["this plan", _rate(plan.budgets.batch / now), "1.00x"]]
    for other in explanation.layer_wise:
        if other.token_seconds is None:
            rows.append([other.name, "-", "-"])
        else:
            rate = plan.budgets.batch / other.token_seconds
            rows.append([other.name, _rate(rate), f"{other.token_seconds / now:.2f}x"])
    header = ["predicted, within the same budgets", "tokens/s", "this plan over it"]
    missing = [f"{other.name}: {other.problem}" for other in explanation.layer_wise if other.problem]
    return [*lines, "", *table(header, rows), *missing]


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
