"""`hybrid prepare` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import (
    ActivationOption,
    ContextOption,
    Device,
    FormatOption,
    JsonOption,
    SourceArgument,
    TokenizerOption,
    WeightFormat,
    device_name,
)
from hybrid.display_overall import overall
from hybrid.exits import explain_bus_errors, loading
from profiler.artifacts import format_size, parse_count, parse_size

if TYPE_CHECKING:
    from hybrid.stages.prepare import PrepareReport


def prepare(
    source: SourceArgument,
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The model directory: new, or begun before.")],
    weight_format: FormatOption = WeightFormat.auto,
    activation: ActivationOption = None,
    tokenizer: TokenizerOption = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help="What to profile on: a UTF-8 text file, a folder of them, or a .jsonl file; may be given several "
            "times. By default texts of several kinds that come with hybrid.",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Profile on at most so many tokens, such as 100k or 2M.")
    ] = None,
    no_predictors: Annotated[
        bool, typer.Option("--no-predictors", help="Train no predictors: much faster to prepare, exact mode to run.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that profiling may use; by default up to 4GiB.")
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="GPU memory to plan for, such as 8GiB; by default what is free now."),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Host memory to plan for; not limited by default.")
    ] = None,
    context: ContextOption = None,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for a machine of `hybrid hardware --list`; by default this one."),
    ] = None,
    second_device: Annotated[
        Device | None,
        typer.Option("--second-device", help="Plan for this machine's `cuda`, or for the stand-in `cpu`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Get a model ready in one go: download it if need be, pack it, profile it, plan for this machine.

    Example: hybrid prepare SparseLLM/ReluLLaMA-7B relu7b --format q8_0

    Given again, the command goes on where it was interrupted: what is there and was made from the same things is kept.
    A download goes on with the byte where it stopped, profiling from its last checkpoint.

    SRC is looked for on this machine first, then on the Hugging Face hub (HF_ENDPOINT, HF_TOKEN, HF_HOME and
    HF_HUB_OFFLINE mean what they mean to its own tools). Only the files that are needed are downloaded, into its cache.
    """
    explain_bus_errors()
    with loading():
        from hybrid.stages.plan import PlanSettings
        from hybrid.stages.prepare import PrepareSettings
        from hybrid.stages.prepare import prepare as run_stage

    settings = PrepareSettings(
        weight_format=weight_format.value,
        activation=activation,
        tokenizer=tokenizer,
        texts=tuple(text or ()),
        tokens=None if tokens is None else parse_count(tokens),
        memory=None if memory is None else parse_size(memory),
        predictors=not no_predictors,
        plan=PlanSettings(
            vram=None if vram is None else parse_size(vram),
            ram=None if ram is None else parse_size(ram),
            context=context,
            hardware=hardware,
            second_device=device_name(second_device),
        ),
    )
    with overall() as (show, note):
        try:
            report = run_stage(source, destination, settings, show, note)
        except KeyboardInterrupt:
            note("interrupted; what is done is kept: the same command goes on")
            raise
    display.show(as_json, "hybrid.prepare/1", report, lambda: prepare_lines(report))


def prepare_lines(report: PrepareReport) -> list[str]:
    """What is ready, and what to type next."""
    return [
        f"{report.path}: {report.source} in {report.weight_format}, {format_size(report.bytes)}; {report.mode} mode",
        "ready; next:",
        *(f"  {command}" for command in report.next),
    ]
