"""`hybrid doctor` on the command line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import JsonOption
from hybrid.exits import Exit, loading

if TYPE_CHECKING:
    from hybrid.stages.doctor import DoctorReport

WIDTH = 110  # of a line of what was found


def doctor(
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder on the drive that models lie on; by default hybrid's cache folder."),
    ] = None,
    no_drive: Annotated[bool, typer.Option("--no-drive", help="Do not read the drive, which takes seconds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine and this installation, and say what to change.

    Instructions and threads in use, memory, GPU, solvers, drive, cache: each is ok, could be better, or is broken. The
    exit code is 1 where something is broken.

    Example: hybrid doctor --directory ~/models
    """
    with loading():
        from hybrid.stages.doctor import examine, looks

    with display.progress("looking") as tell:
        report = examine(looks(directory, not no_drive), tell)
    display.show(as_json, "hybrid.doctor/1", report, lambda: doctor_lines(report))
    if report.broken:
        raise typer.Exit(Exit.ERROR)


def doctor_lines(report: DoctorReport) -> list[str]:
    """A line or more for each part; what to change is below it, after an arrow."""
    width = max(len(check.name) for check in report.checks)
    lines: list[str] = []
    for check in report.checks:
        first = f"{check.status:<15}  {check.name:<{width}}  "
        rest = " " * len(first)
        wrapped = textwrap.wrap(check.found, WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [first + wrapped[0], *(rest + line for line in wrapped[1:])]
        if check.change is not None:  # commands in it are not cut
            lines.append(f"{rest}-> {check.change}")
    counts = [sum(check.status == status for check in report.checks) for status in ("broken", "could be better")]
    return [*lines, "", f"{counts[0]} broken, {counts[1]} could be better, of {len(report.checks)}"]
