"""How much memory can still be taken, within what control groups leave, and how much a process has taken."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from hybrid.runtime.control_groups import control_groups, read


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of a process. resident: in memory now (RSS); peak: the most that it had there; proportional: resident, with
    pages that others have too counted in part (PSS), None where the system does not tell.
    """

    resident: int
    peak: int
    proportional: int | None


def process_memory(pid: int | None = None) -> ProcessMemory:
    """What this process holds, or another one of the same user."""
    process = psutil.Process(pid)
    resident = int(process.memory_info().rss)
    proportional = getattr(process.memory_full_info(), "pss", None)
    return ProcessMemory(resident, max(resident, _peak(pid) or 0), None if proportional is None else int(proportional))


def _peak(pid: int | None) -> int | None:
    """The largest RSS so far; None where another process's is not told."""
    status = read(Path(f"/proc/{pid or 'self'}/status"))
    if "VmHWM:" in status:  # getrusage would count the process that started this one, from before its exec
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    if pid is not None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that can still be taken, page cache that can be dropped included.

    root: where `proc` and `sys` are, in which control groups are looked for.
    """
    rooms = [room for folder in control_groups(root, "memory") if (room := group_room(folder)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory in all: what the system has, within the limits of the process's control groups."""
    limits = [limit for folder in control_groups(root, "memory") if (limit := group_limit(folder)) is not None]
    return min([int(psutil.virtual_memory().total), *limits])


def group_limit(folder: Path) -> int | None:
    """Bytes that one control group of version 2 or 1 may take; None where it sets no limit."""
    texts = [read(folder / name) for name in ("memory.max", "memory.limit_in_bytes")]
    return next((int(text) for text in texts if text.isdecimal()), None)


def group_room(folder: Path) -> int | None:
    """Bytes that one control group of version 2 or 1 leaves; None where it sets no limit."""
    stat = dict(line.partition(" ")[::2] for line in read(folder / "memory.stat").splitlines())
    for limit_name, used_name, prefix, cache in (
        ("memory.max", "memory.current", "", "file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_", "cache"),
    ):
        figures = [read(folder / limit_name), read(folder / used_name)]
        figures += [stat.get(f"{prefix}{name}", "0") for name in (cache, "shmem")]
        if all(figure.isdecimal() for figure in figures):
            limit, used, cached, shared = (int(figure) for figure in figures)
            return limit - used + cached - shared  # shared memory counts as cache, but has no file to return to
    return None
