"""How many threads are worth having: performance cores, within the process's affinity and its control group's quota.

One thread for each physical core. The siblings of a core share its first-level cache and the buffers that wait for
memory, which is what decoding is bound by; and a sibling that watches for work takes turns from one that has some.
Slow cores of a mixed processor are left to the rest of the machine: joins would wait for them.

Files are described in the kernel's documentation: ABI/testing/sysfs-devices-system-cpu, admin-guide/cgroup-v1 and
admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from hybrid.runtime.control_groups import control_groups, read
from profiler.artifacts import UserError

CPUS = "sys/devices/system/cpu"
# What makes a performance core, as a share of the best. Capacity counts work per second: small Arm cores have 0.2 to
# 0.45 of it, middle ones 0.7 and more. Frequency alone says less: compact cores have 0.65 to 0.75, favoured ones 1.05
# times that of their equals.
ENOUGH_CAPACITY = 0.5
ENOUGH_FREQUENCY = 0.8


def usable_cores(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int:
    """Threads to compute on by default, at least 1.

    Args:
        root: where `proc` and `sys` are.
        allowed: CPUs that the process may run on; its affinity by default.
    """
    if sys.platform == "darwin":
        return performance_cores_of_mac()
    cores = count_cores(root, performance_cpus(root, allowed or os.sched_getaffinity(0)))
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def shared_cores(cores: int) -> tuple[int, int]:
    """Threads of the host, and of a second device made of ordinary memory, that share so many cores evenly."""
    return max(1, cores - cores // 2), max(1, cores // 2)


def require_cores(cores: Collection[int]) -> None:
    """Refuse CPUs that this process may not run on.

    Raises:
        UserError: one of them is not among those of its affinity, or the system keeps threads on no CPUs at all.
    """
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("this system does not keep threads on given cores; leave the cores out")
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(cores) - allowed)
    if missing:
        names, known = (", ".join(str(cpu) for cpu in cpus) for cpus in (missing, sorted(allowed)))
        raise UserError(f"this process may not run on CPU {names}; it may on {known}")


def performance_cpus(root: Path, allowed: Collection[int]) -> set[int]:
    """The fast ones among CPUs; all of them where the machine names no difference."""
    fast = parse_cpus(read(root / "sys/devices/cpu_core/cpus")) & set(allowed)  # Intel's mixed processors
    if fast:
        return fast
    for name, enough in (("cpu_capacity", ENOUGH_CAPACITY), ("cpufreq/cpuinfo_max_freq", ENOUGH_FREQUENCY)):
        texts = {cpu: read(root / CPUS / f"cpu{cpu}" / name) for cpu in allowed}
        figures = {cpu: int(text) for cpu, text in texts.items() if text.isdecimal()}
        if len(figures) == len(allowed):
            return {cpu for cpu, figure in figures.items() if figure >= enough * max(figures.values())}
    return set(allowed)


def count_cores(root: Path, cpus: Collection[int]) -> int:
    """Physical cores that the CPUs belong to."""
    siblings = {
        frozenset(parse_cpus(read(root / CPUS / f"cpu{cpu}/topology/thread_siblings_list")) | {cpu}) for cpu in cpus
    }
    return len(siblings)


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the process's control groups grant it, None where nothing limits it.

    A group's limit holds for all below it, so the least on the way up counts.
    """
    limits = [limit for folder in control_groups(root, "cpu") if (limit := group_quota(folder)) is not None]
    return min(limits, default=None)


def group_quota(folder: Path) -> float | None:
    """The limit of one control group of version 2 or 1, in CPUs."""
    words = read(folder / "cpu.max").split()
    if not words:
        words = [read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None  # "max", -1, or no such file
    quota, period = (int(word) for word in words)
    return quota / period if quota and period else None


def performance_cores_of_mac() -> int:
    """Cores of the fastest kind; all physical ones where there is one kind only."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        told = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False).stdout
        if told.strip().isdecimal():
            return max(1, int(told))
    return os.cpu_count() or 1


def parse_cpus(text: str) -> set[int]:
    """The CPUs in a list such as `0-3,8`."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus
