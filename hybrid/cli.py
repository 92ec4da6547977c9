"""The command line: which commands there are, and where. Only the module of the command that is meant is loaded.

Results go to stdout, progress and errors to stderr; exit codes are in `hybrid.exits`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hybrid import display, exits

# In the order of their use: name -> module, and what it has there: a function, or commands below the name.
COMMANDS = {
    "prepare": ("cli_prepare", "prepare"),
    "pack": ("cli_pack", "pack"),
    "profile": ("cli_profile", "profile_app"),
    "calibrate": ("cli_calibrate", "calibrate"),
    "import-predictors": ("cli_import", "import_predictors"),
    "hardware": ("cli_hardware", "hardware"),
    "plan": ("cli_plan", "plan"),
    "run": ("cli_run", "run"),
    "chat": ("cli_chat", "chat"),
    "serve": ("cli_serve", "serve"),
    "compare": ("cli_compare", "compare"),
    "eval": ("cli_quality", "evaluate"),
    "report": ("cli_report", "report"),
    "simulate": ("cli_simulate", "simulate"),
    "inspect": ("cli_inspect", "inspect"),
    "doctor": ("cli_doctor", "doctor"),
    "cache": ("cli_cache", "cache_app"),
}


class Commands(TyperGroup):
    """The commands by name, each loaded when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them, None where there is none of the name."""
        return loaded(cmd_name) if cmd_name in COMMANDS else None


@lru_cache
def loaded(name: str) -> Any:
    """A command as typer makes it of its declaration."""
    module, attribute = COMMANDS[name]
    with exits.loading():
        found: typer.Typer | Callable[..., None] = getattr(import_module(f"hybrid.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Run language models larger than the GPU they run on.

    A model passes through four stages: pack a checkpoint, profile which neurons fire, plan where each one lives, run;
    prepare does the first three. Wherever a model directory is expected, `demo` stands for the model that ships with
    hybrid.

    Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted.

    Example: hybrid run demo "def parse_args(" -n 64
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


def run() -> None:
    """Do what the command line says. A command that it names is asked at once: reading the options before it takes
    typer longer than all the rest of a `--help`.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS and "_HYBRID_COMPLETE" not in os.environ:  # what a shell completes are commands too
        loaded(name)(args=sys.argv[2:], prog_name=f"hybrid {name}")
    else:
        app(prog_name="hybrid")


def main() -> None:
    """The `hybrid` command."""
    exits.run(run)


if __name__ == "__main__":
    main()
