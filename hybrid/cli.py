"""The command line: parses, imports the stage inside the command, calls it, prints.

Results go to stdout, progress and errors to stderr; exit codes are in `hybrid.exits`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid import display, exits, reports
from hybrid.cli_cache import cache_app
from hybrid.cli_calibrate import calibrate
from hybrid.cli_chat import chat
from hybrid.cli_compare import compare
from hybrid.cli_hardware import hardware
from hybrid.cli_import import import_predictors
from hybrid.cli_options import JsonOption, ModelArgument, WeightFormat, model_directory
from hybrid.cli_plan import plan
from hybrid.cli_profile import profile_app
from hybrid.cli_quality import evaluate
from hybrid.cli_report import report
from hybrid.cli_run import run
from hybrid.cli_serve import serve
from hybrid.cli_simulate import simulate
from hybrid.exits import loading

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Run language models larger than the GPU they run on.

    A model passes through four stages: pack a checkpoint, profile which neurons fire, plan where each one lives, run.
    Wherever a model directory is expected, `demo` stands for the model that ships with hybrid.
    """,
)


def show_version(wanted: bool) -> None:
    """Print the versions and end."""
    if wanted:
        from hybrid.cli_version import version_lines

        display.write("\n".join(version_lines()) + "\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the versions of hybrid and what it uses."
        ),
    ] = False,
) -> None:
    """Nothing of its own: --version does what it does when it is read."""


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A Hugging Face checkpoint folder, or a GGUF file.")],
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The model directory to make; must not exist.")],
    weight_format: Annotated[
        WeightFormat,
        typer.Option(
            "--format", help="auto keeps the checkpoint's where it can; q8_0 takes 8.5 bits a weight, q4_0 4.5."
        ),
    ] = WeightFormat.auto,
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the FFN of a GGUF file computes: relu, relu2, silu, drelu, fatrelu:THRESHOLD."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a model directory.

    Example: hybrid pack ~/models/ReluLLaMA-7B relu7b --format q8_0
    """
    with loading():
        from hybrid.stages.pack import pack as run_stage

    with display.progress("packing") as tell:
        report = run_stage(source, destination, weight_format.value, tell, activation)
    display.show(as_json, "hybrid.pack/1", report, lambda: reports.pack_lines(report))


app.add_typer(profile_app, name="profile")
app.command()(calibrate)
app.command("import-predictors")(import_predictors)
app.command()(hardware)
app.command()(plan)
app.command()(run)
app.command()(chat)
app.command()(serve)
app.command()(compare)
app.command("eval")(evaluate)
app.command()(report)
app.command()(simulate)
app.add_typer(cache_app, name="cache")


@app.command()
def inspect(
    model: ModelArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check that it is whole.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a model directory holds; with --verify, whether it is intact.

    Example: hybrid inspect demo --verify
    """
    from hybrid.stages.inspect import inspect as run_stage

    with display.progress("verifying") as tell:
        report = run_stage(model_directory(model), verify, tell)
    display.show(as_json, "hybrid.inspect/1", report, lambda: reports.inspect_lines(report))


def main() -> None:
    """The `hybrid` command."""
    exits.run(lambda: app(prog_name="hybrid"))


if __name__ == "__main__":
    main()
