"""`hybrid simulate` on the command line, and its predictions as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_completion import complete_model
from hybrid.cli_options import (
    JsonOption,
    KvFormat,
    KvOption,
    Mode,
    PlanOption,
    ThresholdsOption,
    model_directory,
    named_model,
)
from hybrid.exits import loading
from hybrid.reports import table
from profiler.artifacts import UserError, format_size, parse_size
from profiler.formats import WEIGHT_FORMATS

if TYPE_CHECKING:
    from hybrid.stages.simulate import Machine, Prediction, SimulateReport

PROMPT_HEADER = ["prompt, s", "layers streamed"]
HEADER = ["plan", "batch", "context", "tokens/s", "ms a step", "attention", "FFN", "head", "transfers", "rows on GPU"]


def simulate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR",
            help="A profiled model directory, or `demo`.",
            show_default=False,
            callback=named_model,
            autocompletion=complete_model,
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the papers' models in the place of DIR; see --list.")
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A machine of `hybrid hardware --list`, or a file; may be given several times. By default this one.",
        ),
    ] = None,
    plan: PlanOption = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Layer-wise offload too, in every form, within the same memory.")
    ] = False,
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes that the GPU may hold, such as 8GiB; by default the machine's."),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes that host memory may hold; by default another machine's."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Sequences at once; may be given several times.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=2, help="Tokens of each sequence; may be given several times.")
    ] = None,
    prompt: Annotated[
        int, typer.Option(min=0, metavar="TOKENS", help="Also how long it takes to read a prompt of so many tokens.")
    ] = 0,
    mode: Annotated[Mode | None, typer.Option(help="What is computed for a token, where no plan says it.")] = None,
    weight_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help=f"Of a shape's weights: {', '.join(WEIGHT_FORMATS)}.")
    ] = None,
    profile: Annotated[str, typer.Option(help="The profile that counts.")] = "default",
    thresholds: ThresholdsOption = "default",
    kv_format: KvOption = KvFormat.f16,
    list_shapes: Annotated[
        bool, typer.Option("--list", help="Show the shapes that hybrid knows; predict nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict tokens per second on machines that may not be here: nothing is run, nothing is measured.

    Of a model directory, the plan that it has (or that --plan names), else the best that can be made for the machine;
    of a shape, the best that can be made, with a profile made up from published figures. How far such predictions have
    been right is in docs/papers.md. Of a prompt's rows in host memory some are computed there, and those of other
    layers streamed to the GPU, whichever takes less time.

    Example: hybrid simulate demo --hardware rtx4060-laptop --vram 7MiB --baselines

    Example: hybrid simulate --shape falcon-40b --hardware powerinfer-pc-high --baselines --batch 1 --batch 8
    """
    if list_shapes:
        show_shapes(as_json)
        return
    if (model is None) == (shape is None):
        raise UserError("name a model directory, or one of the papers' models with --shape NAME: one of both")
    with loading():
        from hybrid.stages.simulate import SimulateSettings, simulate_directory, simulate_shape

    settings = SimulateSettings(
        hardware=tuple(hardware or ()),
        plan=plan,
        baselines=baselines,
        vram=None if vram is None else parse_size(vram),
        ram=None if ram is None else parse_size(ram),
        batches=tuple(batch or (1,)),
        contexts=tuple(context or ()),
        prompt=prompt,
        mode=None if mode is None else mode.value,
        weight_format=weight_format,
        profile=profile,
        thresholds=thresholds,
        kv_format=kv_format.value,
    )
    report = simulate_directory(model_directory(model), settings) if model else simulate_shape(str(shape), settings)
    display.show(as_json, "hybrid.simulate/1", report, lambda: simulate_lines(report))


def show_shapes(as_json: bool) -> None:
    """The papers' models."""
    with loading():
        from placement.shapes import read_shape, shipped_shapes

    shapes = [read_shape(name) for name in shipped_shapes()]
    if as_json:
        display.write_json("hybrid.shapes/1", {"shapes": shapes})
        return
    header = ["shape", "layers", "hidden", "FFN", "parameters", "active", "80 % from"]
    rows = []
    for s in shapes:
        sizes = [str(size) for size in (s.layers, s.hidden, s.ffn)]
        rows.append([s.name, *sizes, f"{s.weights / 1e9:.1f} G", f"{s.active:.0%}", f"{s.hot_share:.0%}"])
    display.write("\n".join(table(header, rows)) + "\n")


def simulate_lines(report: SimulateReport) -> list[str]:
    """A table for each machine."""
    lines = [f"{report.model} in {report.weight_format}, mode {report.mode}: {report.kind}"]
    for machine in report.machines:
        with_prompt = any(p.prompt_seconds is not None for p in machine.predictions)
        header = [*HEADER, *PROMPT_HEADER] if with_prompt else HEADER
        lines += ["", *machine_lines(machine), "", *table(header, [row(p, header) for p in machine.predictions])]
        problems = dict.fromkeys((p.plan, p.problem) for p in machine.predictions if p.problem)
        lines += [f"{plan}: {problem}" for plan, problem in problems]
    if not all(machine.measured for machine in report.machines):
        lines += ["", "Figures that were not measured are data sheets' and estimates, of which engines may reach less."]
    return lines


def machine_lines(machine: Machine) -> list[str]:
    """Which machine, and what of its memory is used."""
    first = machine.predictions[0]
    figures = "its figures were measured" if machine.measured else "its figures were not measured"
    ram = "RAM not limited" if first.ram is None else f"{format_size(first.ram)} of RAM"
    gpu = f"{format_size(first.vram)} of GPU memory" if first.vram else "no GPU"
    return [f"predicted for {machine.name} ({figures}): {gpu}, {ram}", *(f"note: {note}" for note in machine.notes)]


def row(prediction: Prediction, header: list[str]) -> list[str]:
    """One placement's cells; those of one that does not fit are empty."""
    expected, speed = prediction.expected, prediction.tokens_per_second
    start = [prediction.plan, str(prediction.batch), str(prediction.context)]
    if expected is None or speed is None:
        return [*start, "does not fit", *[""] * (len(header) - len(start) - 1)]
    parts = (
        expected.token_seconds,
        expected.attention_seconds,
        expected.ffn_seconds,
        expected.head_seconds,
        expected.transfer_seconds,
    )
    cells = [*start, number(speed), *(number(1e3 * part) for part in parts), f"{prediction.gpu_rows or 0:.0%}"]
    if prediction.prompt_seconds is not None:
        cells += [number(prediction.prompt_seconds), f"{prediction.prompt_streamed or 0:.0%}"]
    return cells


def number(value: float) -> str:
    """Three digits, and all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
