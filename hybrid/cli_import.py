"""`hybrid import-predictors` on the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import JsonOption, ModelArgument, model_directory
from hybrid.exits import loading
from profiler.artifacts import format_size, parse_count

if TYPE_CHECKING:
    from hybrid.stages.import_predictors import ImportReport


class PredictorFormat(str, Enum):
    """How imported predictors are stored."""

    keep = "keep"
    f16 = "f16"
    q8_0 = "q8_0"


def import_predictors(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds model_{layer}.pt, one for each layer.")],
    name: Annotated[str, typer.Option(help="Name of predictors and profile in the directory.")] = "published",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Measure on it: a text file, a folder, a .jsonl file; several.")
    ] = None,
    weight_format: Annotated[
        PredictorFormat, typer.Option("--format", help="keep leaves 16-bit types; q8_0 takes 8.5 bits a weight.")
    ] = PredictorFormat.keep,
    keep: Annotated[
        float | None,
        typer.Option(help="Set each layer's threshold to keep this share of activation mass, such as 0.99."),
    ] = None,
    tokens: Annotated[str, typer.Option(help="Use at most so many tokens of the text, such as 100k.")] = "100k",
    reorder: Annotated[
        bool, typer.Option("--reorder", help="Put rows hottest first by activation_{layer}.pt, as profile does.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take over predictors that others published: model_{layer}.pt, and counts in activation_{layer}.pt.

    They read the state before the FFN's norm, as PowerInfer's do, and name neurons whose logit is above 0. With --text
    it is measured what they miss; with --keep too, part of the text sets thresholds instead.

    Example: hybrid import-predictors relu7b ReluLLaMA-7B-Predictor --text prose.txt --keep 0.99
    """
    with loading():
        from hybrid.stages.import_predictors import ImportSettings
        from hybrid.stages.import_predictors import import_predictors as run_stage

    settings = ImportSettings(name, weight_format.value, keep, parse_count(tokens), reorder)
    with display.stages() as tell:
        report = run_stage(model_directory(model), folder, text or [], settings, tell, display.note)
    display.show(as_json, "hybrid.import-predictors/1", report, lambda: import_lines(report))


def import_lines(report: ImportReport) -> list[str]:
    """What was imported, what it is worth, and what its files do not say."""
    lines = []
    if report.measured_tokens:
        header = ["layer", "rank", "threshold", "active", "named", "recall", "precision", "mass kept"]
        rows = [
            [
                str(index),
                str(layer.rank),
                f"{layer.threshold:.4g}",
                f"{layer.quality.active:.1%}",
                f"{layer.quality.named:.1%}",
                f"{layer.quality.recall:.1%}",
                f"{layer.quality.precision:.1%}",
                f"{layer.quality.mass_recall:.2%}",
            ]
            for index, layer in enumerate(report.layers)
        ]
        lines = [*reports.table(header, rows), ""]
    ranks = sorted({layer.rank for layer in report.layers})
    width = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    formats = ", ".join(sorted({name for layer in report.layers for name in layer.weight_formats}))
    evaluate = f"hybrid eval {report.model} --profile {report.name} --text FILE"
    lines.append(
        f"{report.path}: {len(report.layers)} predictors of rank {width} in {formats}, {format_size(report.nbytes)}; "
        "they read the state before the FFN's norm"
    )
    if report.calibrated_tokens:
        lines.append(f"thresholds: set on {report.calibrated_tokens:,} tokens of the text")
    else:
        lines.append("thresholds: 0, as published")
    if report.measured_tokens:
        lines.append(f"quality: measured on {report.measured_tokens:,} tokens; what it costs the model: {evaluate}")
    else:
        lines.append(f"quality: not measured (0 tokens), since there was no --text; measure it with: {evaluate}")
    return [*lines, *_count_lines(report)]


def _count_lines(report: ImportReport) -> list[str]:
    if report.profile is None:
        return [f"no activation_*.pt, so no profile: count with: hybrid profile {report.model} --text FILE"]
    named = "as measured on the text" if report.measured_tokens else "taken to be as many as are active"
    return [
        f"{report.profile}: published counts; their files do not say of how many tokens: taken as the greatest count, "
        f"{report.counted_tokens:,}",
        f"estimates: what several tokens need together, as if they were independent; named neurons, {named}",
        "rows: reordered, hottest first" if report.reordered else "rows: left in their order; --reorder changes it",
    ]
