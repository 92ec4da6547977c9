"""One progress display over all phases of a long command: what it does now, how far all of it is, how long it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hybrid import display

if TYPE_CHECKING:
    from hybrid.stages.prepare_pace import Status


@contextlib.contextmanager
def overall() -> Iterator[tuple[Callable[[Status], None], Callable[[str], None]]]:
    """A bar that is told its status, and a way to print lines above it; only the lines where stderr is no terminal."""
    if not display.on_terminal():
        yield (lambda status: None), display.note
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0, left="")

        def show(status: Status) -> None:
            stage = status.phase if status.stage in ("", status.phase) else f"{status.phase}: {status.stage}"
            bar.update(task, description=stage, completed=status.share, left=time_left(status.left))

        yield show, lambda line: console.print(line, markup=False, soft_wrap=True)


def time_left(seconds: float | None) -> str:
    """As people read it, and no more exactly than a guess is: `about 12 min left`."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
