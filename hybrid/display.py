"""What a terminal shows: results on stdout, progress and notes on stderr, tables that fit.

rich draws; it is imported where it is needed, so that `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from profiler.artifacts import format_size

if TYPE_CHECKING:
    from hybrid.stages.compare import Comparison


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


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns aligned by width, the first to the left, the others to the right; pastes into Markdown."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *rest = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return [line(header), rule, *(line(row) for row in rows)]


def comparison_lines(result: Comparison) -> list[str]:
    """The table of `hybrid compare`."""
    header = ["", "tokens/s", "ratio", "touched/token", "rows/token", "perplexity", "top-1 as dense", "KL (nats)"]
    rows = []
    for row in result.rows:
        by_unit = " + ".join(f"{count:,.0f} {unit}" for unit, count in row.rows_per_token.items())
        quality = row.quality
        rows.append(
            [
                row.name,
                f"{row.tokens_per_second:.1f}",
                f"{row.ratio:.2f}x",
                format_size(row.bytes_per_token),
                by_unit,
                f"{quality.perplexity:.4f}",
                f"{quality.agreement:.2%}",
                f"{quality.divergence:.5f}",
            ]
        )
    first = result.rows[0].quality
    note_line = f"quality over {first.tokens:,} tokens of {', '.join(result.text)}; speed over interleaved rounds"
    return [*table(header, rows), "", note_line]
