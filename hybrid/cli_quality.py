"""The command that measures quality: `eval`. Thin, as `hybrid.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display, reports
from hybrid.cli_options import (
    ContextOption,
    DeviceOption,
    HeldOutOption,
    JsonOption,
    KvFormat,
    KvOption,
    Mode,
    ModelArgument,
    PlanOption,
    ProfileOption,
    ThreadsOption,
    ThresholdsOption,
    device_name,
    held_out,
)
from hybrid.exits import loading
from hybrid.names import DEMO
from profiler.artifacts import UserError

if TYPE_CHECKING:
    from hybrid.stages.budget import BudgetReport


def evaluate(
    model: ModelArgument,
    text: HeldOutOption = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(help="May be given several times; by default all that the model offers. Dense is the reference."),
    ] = None,
    plan: PlanOption = None,
    device: DeviceOption = None,
    profile: ProfileOption = "default",
    thresholds: ThresholdsOption = "default",
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Use so many tokens: the beginning of each --text, by its share of the bytes."),
    ] = None,
    layer_tokens: Annotated[
        int, typer.Option(min=1, help="Measure layers on about so many tokens, from all over the text.")
    ] = 8192,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer, however many there are.")] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="First search, on the texts of --calibrate, the cheapest thresholds that lose at most so much "
            "perplexity, such as 0.1%, and store them; see `hybrid calibrate`."
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option("--calibrate", help="With --budget: what the search runs on. The demo has one."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the evaluation in the directory.")] = "default",
    context: ContextOption = None,
    kv_format: KvOption = KvFormat.f16,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what each mode costs in quality, on documents that were neither trained nor calibrated on.

    The text runs through the code that decodes, in each mode. `over dense` is what a mode adds to dense perplexity; its
    95 % interval comes from drawing documents with replacement, so it says how far other texts of the kind may differ.
    KL is how far a mode's probabilities are from dense ones, per token. Of each layer: how many neurons are active and
    named, which share of the active ones is named (recall), and which share of their summed |activation| (mass).

    The result is kept in the directory, and `hybrid inspect` shows it. Use three disjoint sets of files: one to
    profile, one to calibrate, one for this.

    Example: hybrid eval relu7b --text heldout/ --mode predicted --plan default --second-device cuda

    Example: hybrid eval relu7b --text heldout/ --budget 0.1% --calibrate calibrate/
    """
    with loading():
        from hybrid.stages.evaluate import EvaluationSettings
        from hybrid.stages.evaluate import evaluate as run_stage

    settings = EvaluationSettings(
        name=name,
        modes=None if mode is None else tuple(one.value for one in mode),
        plan=plan or ("default" if device else None),
        device=device_name(device),
        profile=profile,
        thresholds=thresholds,
        context=context,
        kv_format=kv_format.value,
        threads=threads,
        tokens=tokens,
        layer_tokens=layer_tokens,
    )
    texts = held_out(model, text)
    if calibrate and not budget:
        raise UserError("texts to calibrate on are for a search: add --budget 0.1%")
    if budget:
        found = calibrated(model, calibrate, budget, mode, profile, threads)
        if not as_json:
            display.write("\n".join([*reports.budget_lines(found), "", ""]))
    with display.stages() as tell:
        report = run_stage(model, texts, settings, tell)
    display.show(as_json, "hybrid.eval/1", report, lambda: reports.evaluation_lines(report, layers))


def calibrated(
    model: str, texts: list[Path] | None, budget: str, modes: list[Mode] | None, profile: str, threads: int | None
) -> BudgetReport:
    """The thresholds of the one mode that has some, searched within a budget and stored."""
    with loading():
        from hybrid.stages.budget import BudgetSettings, fit, parse_budget
        from hybrid.stages.shipped import CALIBRATION_TEXT

    found = texts or ([CALIBRATION_TEXT] if model == DEMO else [])
    if not found:
        raise UserError("a budget is kept on a text of its own: add --calibrate FILE, with other documents than --text")
    asked = [mode.value for mode in modes or [] if mode in (Mode.predicted, Mode.threshold)]
    if len(asked) > 1 or (modes and not asked):
        raise UserError("a budget is kept by the thresholds of one mode: add --mode predicted, or --mode threshold")
    settings = BudgetSettings(parse_budget(budget), asked[0] if asked else None, profile, threads=threads)
    with display.stages() as tell:
        return fit(model, found, settings, tell)
