"""Keeps a plan's budget of host memory: rows that it leaves on the drive do not stay in memory once they were used.

Files are mapped, so a page that was read stays with the process until the kernel wants it for something else. Where a
plan bounds host memory, pages of the rows on the drive are given back as soon as the process holds more of the model's
files than the plan allows, and are read again when they are needed.

/proc/self/statm and /proc/self/smaps (proc(5)) tell what is held: the former of all files at once, in microseconds, the
latter of each mapping, in milliseconds. Where the system has neither, pages stay.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hybrid.runtime.control_groups import read
from hybrid.runtime.options import EngineOptions
from hybrid.store.stored import Origin

MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ .*\n(?:\w+:.*\n){0,4}?Rss: +(\d+) kB$", re.MULTILINE)
LOOK_EVERY = 16  # times that too much seems to be held: mappings are looked at, and what seems is put right


def resident_of_files() -> int:
    """Bytes of files that this process has in memory; 0 where the system does not tell."""
    words = read(Path("/proc/self/statm")).split()
    return int(words[2]) * mmap.PAGESIZE if len(words) > 2 else 0


def resident_of_mappings(mappings: Collection[range]) -> int:
    """Bytes that this process has in memory of what is mapped within some ranges of addresses."""
    found = 0
    for begin, size in MAPPING.findall(read(Path("/proc/self/smaps"))):
        address = int(begin, 16)
        found += int(size) << 10 if any(address in mapping for mapping in mappings) else 0
    return found


class DriveRows:
    """Rows that a plan leaves on the drive.

    rows: their parts of files. allowed: bytes of the model's files that may be in memory. held: tells how many are, and
    may take its time; resident: tells at once what all files of the process have there.
    """

    def __init__(
        self,
        rows: Sequence[Origin],
        allowed: int,
        held: Callable[[], int],
        resident: Callable[[], int] = resident_of_files,
    ) -> None:
        self._rows, self._allowed, self._held, self._resident = tuple(rows), allowed, held, resident
        self._next = 0
        self._seems = allowed + 1  # bytes held; others' files that come count too, and are not seen to go
        self._before = 0  # what all files had in memory when that was said
        self._times = 0  # that it was too much

    def settle(self) -> None:
        """Give back what is too much, layer after layer, beginning where it ended last time. Between any operators."""
        resident = self._resident()
        self._seems += max(0, resident - self._before)
        self._before = resident
        if self._seems <= self._allowed:
            return
        if self._times % LOOK_EVERY == 0:
            self._seems = self._held()
        self._times += 1
        for _ in self._rows:
            if self._seems <= self._allowed:
                return
            rows = self._rows[self._next]
            rows.forget(rows.length)
            self._next = (self._next + 1) % len(self._rows)
            resident = self._resident()
            self._seems -= self._before - resident
            self._before = resident


def drive_rows(
    options: EngineOptions, rows: Sequence[Origin], stored: Collection[str], mappings: Collection[range]
) -> DriveRows | None:
    """What keeps a plan's budget of host memory; None where it sets none, or leaves nothing on the drive.

    stored: the purposes of what lies in the model's files. mappings: where these are mapped.
    """
    plan = options.plan
    if plan is None or plan.budgets.ram is None or not rows or not options.mmap:
        return None
    allowed = sum(plan.bytes["ram"][purpose] for purpose in stored)
    return DriveRows(rows, allowed, lambda: resident_of_mappings(mappings))
