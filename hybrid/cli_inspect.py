"""`hybrid inspect` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import JsonOption, ModelArgument, model_directory
from hybrid.exits import loading


def inspect(
    model: ModelArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check that it is whole.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a model directory holds; with --verify, whether it is intact.

    Example: hybrid inspect demo --verify
    """
    with loading():
        from hybrid.stages.inspect import inspect as run_stage

    with display.progress("verifying") as tell:
        report = run_stage(model_directory(model), verify, tell)
    display.show(as_json, "hybrid.inspect/1", report, lambda: reports.inspect_lines(report))
