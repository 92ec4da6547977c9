"""What a terminal shows: results on stdout, progress and notes on stderr.

rich draws; it is imported where it is needed, so that `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any


def write(text: str) -> None:
    """Part of the result, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """The result as one JSON object; paths as text."""
    write(json.dumps(value, indent=1, default=str) + "\n")


def show(as_json: bool, report: Any, lines: Callable[[], list[str]]) -> None:
    """Print a report, a dataclass, as JSON or as lines."""
    if as_json:
        write_json(asdict(report))
    else:
        write("\n".join(lines()) + "\n")


def note(line: str) -> None:
    """A line that is not part of the result."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per named stage, told `(stage, done, total)`; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    share = TextColumn("{task.percentage:>3.0f}%")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


@contextlib.contextmanager
def progress(stage: str) -> Iterator[Callable[[int, int], None]]:
    """One progress bar, told `(done, total)`."""
    with stages() as tell:
        yield lambda done, total: tell(stage, done, total)


@contextlib.contextmanager
def long_progress(stage: str, least: int) -> Iterator[Callable[[int, int], None]]:
    """As `progress`, and nothing is shown of work whose total is less than `least`."""
    with contextlib.ExitStack() as shown:
        bars: list[Callable[[str, int, int], None]] = []

        def tell(done: int, total: int) -> None:
            if total >= least:
                if not bars:
                    bars.append(shown.enter_context(stages()))
                bars[0](stage, done, total)

        yield tell
