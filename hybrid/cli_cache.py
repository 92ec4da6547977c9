"""`hybrid cache` on the command line."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import JsonOption
from hybrid.exits import Exit, loading
from hybrid.reports import table
from profiler.artifacts import format_size

if TYPE_CHECKING:
    from hybrid.stages.cache_contents import CacheReport, ClearReport

cache_app = typer.Typer(
    add_completion=False,
    help="""List or clear what hybrid keeps for itself: the packed demo, plans made on the spot, this machine's figures.

    The folder is HYBRID_CACHE, else the platform's (on Linux ~/.cache/hybrid). All of it can be made anew.

    Example: HYBRID_CACHE=/scratch/hybrid hybrid cache list
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@cache_app.command("list")
def list_cache(as_json: JsonOption = False) -> None:
    """Say what is in the cache, how large it is, and what makes it anew.

    Example: hybrid cache list
    """
    with loading():
        from hybrid.stages.cache_contents import cache_contents

    report = cache_contents()
    display.show(as_json, "hybrid.cache/1", report, lambda: cache_lines(report))


@cache_app.command()
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Kinds or paths, as the list has them.", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what takes a command to make anew, such as this machine's figures.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what is made anew whenever it is needed; with names, those; with --all, everything that is listed.

    A process that uses a model of the cache goes on with it. What another process is writing stays, which ends in exit
    code 1. Files that are not hybrid's are left alone.

    Example: hybrid cache clear demo
    """
    with loading():
        from hybrid.stages.cache_contents import clear_cache

    report = clear_cache(names or (), everything)
    display.show(as_json, "hybrid.cache-clear/1", report, lambda: clear_lines(report))
    for kept in report.kept:
        display.note(f"hybrid: {kept.path} is still there: {kept.reason}")
    if report.kept:
        raise typer.Exit(Exit.ERROR)


def cache_lines(report: CacheReport) -> list[str]:
    """A table of what there is, and the sum."""
    rows = [
        [
            entry.path,
            entry.kind,
            format_size(entry.bytes),
            f"{datetime.fromtimestamp(entry.modified, timezone.utc):%Y-%m-%d}",
            "itself, when needed" if entry.by_itself else entry.made_by,
        ]
        for entry in report.entries
    ]
    shown = [*table(["path", "kind", "size", "made", "made anew by"], rows), ""] if rows else []
    others = f"; {format_size(report.other_bytes)} of other files, which are left alone" if report.other_bytes else ""
    return [*shown, f"{report.directory}: {format_size(report.bytes)} can be cleared{others}"]


def clear_lines(report: ClearReport) -> list[str]:
    """What was removed."""
    removed = [f"removed {entry.path} ({entry.kind}, {format_size(entry.bytes)})" for entry in report.removed]
    return [*removed, f"{report.directory}: {format_size(report.bytes)} freed"]
