"""`hybrid profile` and `hybrid profile merge` on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hybrid import display, reports
from hybrid.cli_options import JsonOption, ModelArgument, model_directory
from hybrid.exits import loading
from hybrid.names import DEMO
from profiler.artifacts import parse_count, parse_size

COUNT = "count"


class DefaultGroup(TyperGroup):
    """A group of commands of which `count` is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else [COUNT, *args])


profile_app = typer.Typer(
    cls=DefaultGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="Count which neurons fire on a text and train predictors; or merge such counts.",
)
NameOption = Annotated[str, typer.Option(help="Name of the profile in the directory.")]


@profile_app.command(COUNT)
def count(
    model: ModelArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", help="A UTF-8 text file, a folder of them, or a .jsonl file; may be given several times."
        ),
    ] = None,
    name: NameOption = "default",
    tokens: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Use at most so many tokens of the text, such as 100k or 2M.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory to use, such as 2GiB; by default half of what is free, up to 4GiB."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="One rank for all predictors; by default one is searched for each layer.")
    ] = None,
    predictor_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What all predictors may take: bytes, or a share of the model such as 5%.",
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Share of the activations' mass that predictors are to keep.")
    ] = 0.99,
    perceptrons: Annotated[
        bool, typer.Option("--perceptrons", help="Try perceptrons trained from random weights too: takes far longer.")
    ] = False,
    look_ahead: Annotated[
        bool,
        typer.Option(
            "--look-ahead", help="Have predictors read what the layer before read, so that rows can be fetched."
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training for each predictor that is tried.")] = 300,
    predictors: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Count with the predictors of this profile, or of a file; train none."),
    ] = None,
    no_predictors: Annotated[bool, typer.Option("--no-predictors", help="Only count: train no predictors.")] = False,
    thresholds: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Count activations above these thresholds of hybrid calibrate; train none."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling and training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Count which neurons fire on a text, train predictors, and put the hottest rows first.

    Example: hybrid profile relu7b --text src/ --text chats.jsonl --tokens 2M

    Each --text is a kind of text of its own (16 at most): a UTF-8 file, a folder of them, or a .jsonl file whose lines
    hold `text`, or `messages` for the model's chat template. What the hottest neurons of one half of the text give on
    the other half, and of one kind on another, is measured and reported: give text like that which the model is for.

    An estimate of memory, disk and time comes first. The model is read once per round of tokens, so it may be larger
    than memory. A run that is interrupted or killed goes on from its last checkpoint when the same command is given
    again.

    Shards of a text may be counted one by one, on several machines: profile the first, copy its predictors, count the
    others with --predictors NAME and a --name each, then add them up: see hybrid profile merge --help.
    """
    with loading():
        from hybrid.stages.profile import ProfileSettings
        from hybrid.stages.profile import profile as run_stage
        from hybrid.stages.shipped import PROFILE_TEXT
        from hybrid.stages.shipped_texts import SHIPPED_TOKENS, broad_texts, described

    wanted = None if tokens is None else parse_count(tokens)
    if not text:
        text, wanted = [PROFILE_TEXT] if model == DEMO else broad_texts(), wanted or SHIPPED_TOKENS
        display.note(described(text, wanted))
    path = model_directory(model)
    settings = ProfileSettings(
        name=name,
        tokens=wanted,
        rank=rank,
        predictor_bytes=None if predictor_bytes is None else parse_part(predictor_bytes, path),
        keep=keep,
        perceptrons=perceptrons,
        look_ahead=look_ahead,
        steps=steps,
        memory=None if memory is None else parse_size(memory),
        seed=seed,
        train=not no_predictors,
        predictors=predictors,
        thresholds=thresholds,
    )
    with display.stages() as tell:
        report = run_stage(path, text, settings, tell, display.note)
    display.show(as_json, "hybrid.profile/1", report, lambda: reports.profile_lines(report))


@profile_app.command()
def merge(
    model: ModelArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Profiles of the directory, or profile files.")],
    name: NameOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Add the counts of several runs of the same model, and put the rows in the order of the sum.

    Example: hybrid profile merge relu7b shard1 shard2 --name all

    The runs counted the same weights with the same predictors (or none), each its own text; others are refused.
    """
    with loading():
        from hybrid.stages.profile_merge import merge as run_stage

    with display.stages() as tell:
        report = run_stage(model_directory(model), names, name, tell)
    display.show(as_json, "hybrid.profile/1", report, lambda: reports.profile_lines(report))


def parse_part(text: str, path: Path) -> int:
    """Bytes: a size, or with a percent sign a share of a model's weights.

    Raises:
        UserError: the text is neither, or there is no model at the path.
    """
    from hybrid.store.files import ModelFiles

    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share is None:
        return parse_size(text)
    return int(float(share[1]) / 100 * ModelFiles.open_files(path).weight_bytes)
