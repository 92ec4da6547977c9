"""`hybrid pack` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import (
    ActivationOption,
    FormatOption,
    JsonOption,
    SourceArgument,
    TokenizerOption,
    WeightFormat,
)
from hybrid.exits import explain_bus_errors, loading


def pack(
    source: SourceArgument,
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The model directory to make; must not exist.")],
    weight_format: FormatOption = WeightFormat.auto,
    activation: ActivationOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a model directory; `hybrid prepare` does so too, and all that comes after it.

    Example: hybrid pack ~/models/ReluLLaMA-7B relu7b --format q8_0
    """
    with loading():
        from hybrid.stages.pack import pack as run_stage
        from hybrid.stages.sources import find_source

    explain_bus_errors()
    with display.stages() as tell:
        found = find_source(source, display.note)
        path = found.fetch(lambda done, total: tell("downloading", done, total))
        report = run_stage(
            path,
            destination,
            weight_format.value,
            lambda done, total: tell("packing", done, total),
            activation,
            tokenizer,
            found.hub_name,
        )
    display.show(as_json, "hybrid.pack/1", report, lambda: reports.pack_lines(report))
