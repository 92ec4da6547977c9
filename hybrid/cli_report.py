"""The command that shows: `report`. Thin, as `hybrid.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import JsonOption, ModelArgument, model_directory
from hybrid.exits import loading


def report(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML page to write.")],
    png: Annotated[Path | None, typer.Option(help="A folder for the same pictures as PNG files.")] = None,
    profile: Annotated[str, typer.Option(help="The profile, and its predictors, to show.")] = "default",
    plan: Annotated[str, typer.Option(help="The plan to show, by its name in the directory.")] = "default",
    as_json: JsonOption = False,
) -> None:
    """Show a model directory as one HTML page: how hot neurons are, how good predictors are, what each mode costs.

    The page needs neither network nor scripts. What the directory does not hold yet is named with the command that
    makes it. Pictures are drawn by matplotlib.

    Example: hybrid report demo -o report.html
    """
    with loading():
        from hybrid.stages.report import report as run_stage

    with display.stages() as tell:
        result = run_stage(model_directory(model), output, png, profile, plan, tell)
    display.show(as_json, "hybrid.report/1", result, lambda: reports.report_lines(result))
