"""`hybrid calibrate` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import JsonOption, Mode, ModelArgument, TextOption, ThreadsOption, model_directory
from hybrid.exits import loading
from profiler.artifacts import UserError, parse_count


def calibrate(
    model: ModelArgument,
    text: TextOption,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Whose thresholds: `predicted`, or `threshold` where activations are never exactly zero."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Search the cheapest thresholds that lose at most so much perplexity: 0.1%.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Mode threshold: share of each layer's neurons that a token leaves out; by default 0.5."),
    ] = None,
    least_mass: Annotated[
        float, typer.Option(help="With --budget: share of the activations' mass that every layer keeps.")
    ] = 0.0,
    name: Annotated[str, typer.Option(help="Name of the thresholds, or of the profile, in the directory.")] = "default",
    tokens: Annotated[str, typer.Option(help="Use at most so many tokens of the text, such as 100k.")] = "100k",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set thresholds on a text: which neurons are named or left out, layer by layer.

    With --budget, the cheapest ones whose perplexity stays within it: each step of the search runs the text through the
    code that decodes, and the upper end of the interval over documents has to stay below. Predicted mode gets new
    thresholds for its predictors' logits. Mode threshold gets cutoffs for activations; it is lossy, for models without
    exact zeros, and without --budget it leaves out a share of each layer's neurons.

    The text should be in neither the profile nor what `hybrid eval` reports on.

    Example: hybrid calibrate relu7b --text calibrate/ --budget 0.1%

    Example: hybrid calibrate smollm --text prose.txt --sparsity 0.5
    """

    path = model_directory(model)
    if budget is None:
        with loading():
            from hybrid.stages.calibrate import CalibrateSettings
            from hybrid.stages.calibrate import calibrate as run_stage

        if mode not in (None, Mode.threshold) or least_mass:
            raise UserError(
                "thresholds of predictors, and of a least mass, are found within a budget: add --budget 0.1%"
            )
        settings = CalibrateSettings(
            name=name, sparsity=0.5 if sparsity is None else sparsity, tokens=parse_count(tokens)
        )
        with display.stages() as tell:
            report = run_stage(path, text, settings, tell, display.note)
        display.show(as_json, "hybrid.calibrate/1", report, lambda: reports.calibration_lines(report))
        return
    if sparsity is not None:
        raise UserError("give a budget of perplexity or a sparsity, not both")
    with loading():
        from hybrid.stages.budget import BudgetSettings, fit, parse_budget

    wanted = BudgetSettings(
        budget=parse_budget(budget),
        mode=None if mode is None else mode.value,
        name=name,
        tokens=parse_count(tokens),
        least_mass=least_mass,
        threads=threads,
    )
    with display.stages() as tell:
        found = fit(path, text, wanted, tell)
    display.show(as_json, "hybrid.calibrate-budget/1", found, lambda: reports.budget_lines(found))
