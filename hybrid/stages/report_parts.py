"""What a report is made of: sections of words, tables and pictures; and how numbers and texts of others are shown.

Texts that come from files are cut to a line and stay plain text: the template escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid.stages.report_drawing import Picture  # draws with matplotlib, which is optional

FEW_ROWS = 12  # of a table that is shown without being asked for
NOTHING = "-"


@dataclass(frozen=True)
class Missing:
    """Why there is nothing to show, and the command that makes it."""

    reason: str
    command: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, which may be empty. words: cells hold sentences, not figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False

    @property
    def folded(self) -> bool:
        """Whether it is so long that it is shown only when it is asked for."""
        return len(self.rows) > FEW_ROWS


@dataclass(frozen=True)
class Section:
    """A section: its anchor, title, opening words, what is missing of it, notes of warning, pictures and tables."""

    anchor: str
    title: str
    text: str
    missing: tuple[Missing, ...] = ()
    warnings: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


def share(value: float | None) -> str:
    """A share of 1 in percent."""
    if value is None:
        return NOTHING
    return f"{100 * value:.2g} %" if value < 1e-3 else f"{100 * value:.2f} %"


def count(value: object) -> str:
    """A whole number with separators; anything else that a file of others holds as it is."""
    return plain(f"{value:,}" if isinstance(value, int) else value, 40)


def plain(text: object, limit: int = 60) -> str:
    """A text of others as one line of at most `limit` characters, without what cannot be printed."""
    line = "".join(c if c.isprintable() else "·" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"
