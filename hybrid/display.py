"""What a command shows: its result on stdout, notes and progress on stderr.

A command prints its result by one call:

    display.show(as_json, "hybrid.plan/1", report, lambda: plan_lines(report))

and everything else by `note`, or as progress by `stages` and `progress`, which show nothing off a terminal. The schema
names what the JSON holds: docs/command-line.md lists them, docs/schemas/ has them, and the number counts up with a
change that a reader of it could stumble over. rich draws; it is imported where it is needed: `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError


def write(text: str) -> None:
    """Part of the result, shown at once; what the terminal's encoding lacks is shown as its code.

    Raises:
        BrokenPipeError: nobody reads it any more.
        UserError: it cannot be written.
    """
    out = sys.stdout
    if out is None:
        raise UserError("cannot write the result: stdout is closed")
    try:
        try:
            out.write(text)
        except UnicodeEncodeError as error:
            out.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write the result: {error.strerror}") from error


def write_json(schema: str, value: Any, indent: int | None = 1) -> None:
    """The result, a dataclass or a mapping, as one JSON object that opens with the name of its schema; without `indent`
    on a line of its own.
    """
    write(json.dumps({"schema": schema, **plain(value)}, indent=indent, allow_nan=False) + "\n")


def show(as_json: bool, schema: str, report: Any, lines: Callable[[], Iterable[str]]) -> None:
    """Print a report, a dataclass, as JSON or as lines.

    schema: what its JSON is called, such as `hybrid.plan/1`.
    """
    if as_json:
        write_json(schema, report)
    else:
        write("\n".join(lines()) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses as objects, paths as text, what is not finite (which JSON lacks) as null.

    Raises:
        TypeError: it holds something else than results are made of.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    raise TypeError(f"{type(value).__name__} is no part of a result")


def note(line: str) -> None:
    """A line that is not part of the result; where stderr is closed nobody wants it."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def on_terminal() -> bool:
    """Whether somebody watches stderr, on a terminal that can draw over what it has drawn."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per named stage, told `(stage, done, total)`; nothing where stderr is no terminal.

    NO_COLOR takes the colours away, a terminal that cannot move its cursor (TERM=dumb) gets no bars.
    """
    if not on_terminal():
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
