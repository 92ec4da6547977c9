"""Keeps a plan's budget of host memory: rows that it leaves on the drive do not stay in memory once they were used.

Files are mapped, so a page that was read stays with the process until the kernel wants it for something else. Where a
plan bounds host memory, pages of the rows on the drive are given back as soon as the process holds more of files than
the plan allows, and are read again when they are needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

from hybrid.runtime.control_groups import read
from hybrid.runtime.options import EngineOptions
from hybrid.store.stored import Origin


def resident_of_files() -> int:
    """Bytes of files that this process has in memory; 0 where the system does not tell, which is all but Linux."""
    words = read(Path("/proc/self/statm")).split()
    return int(words[2]) * mmap.PAGESIZE if len(words) > 2 else 0


class DriveRows:
    """Rows that a plan leaves on the drive.

    rows: their parts of files. allowed: bytes of files that the process may have in memory. resident: tells how many
    it has.
    """

    def __init__(self, rows: Sequence[Origin], allowed: int, resident: Callable[[], int] = resident_of_files) -> None:
        self._rows, self._allowed, self._resident, self._next = tuple(rows), allowed, resident, 0

    def settle(self) -> None:
        """Give back what is too much, layer after layer, beginning where it ended last time. Between any operators."""
        for _ in self._rows:
            if self._resident() <= self._allowed:
                return
            rows = self._rows[self._next]
            rows.forget(rows.length)
            self._next = (self._next + 1) % len(self._rows)


def drive_rows(options: EngineOptions, rows: Sequence[Origin], stored: Sequence[str], before: int) -> DriveRows | None:
    """What keeps a plan's budget of host memory; None where it sets none, or leaves nothing on the drive.

    stored: the purposes of what lies in files. before: bytes of files that the process had in memory before those of
    the model, such as its libraries, which come on top.
    """
    plan = options.plan
    if plan is None or plan.budgets.ram is None or not rows or not options.mmap:
        return None
    return DriveRows(rows, before + sum(plan.bytes["ram"][purpose] for purpose in stored))
