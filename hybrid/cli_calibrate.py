"""`hybrid calibrate` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import JsonOption, ModelArgument, TextOption
from profiler.artifacts import parse_count


def calibrate(
    model: ModelArgument,
    text: TextOption,
    sparsity: Annotated[float, typer.Option(help="Share of each layer's neurons that a token leaves out.")] = 0.5,
    name: Annotated[str, typer.Option(help="Name of the thresholds in the directory.")] = "default",
    tokens: Annotated[str, typer.Option(help="Use at most so many tokens of the text, such as 100k.")] = "100k",
    as_json: JsonOption = False,
) -> None:
    """Set each layer's threshold below which activations are left out: lossy, for models without exact zeros.

    Example: hybrid calibrate smollm --text prose.txt --sparsity 0.5
    """
    from hybrid.stages.calibrate import CalibrateSettings
    from hybrid.stages.calibrate import calibrate as run_stage
    from hybrid.stages.opening import resolve

    settings = CalibrateSettings(name=name, sparsity=sparsity, tokens=parse_count(tokens))
    with display.stages() as tell:
        report = run_stage(resolve(model), text, settings, tell, display.note)
    display.show(as_json, report, lambda: reports.calibration_lines(report))
