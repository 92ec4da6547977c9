"""What a machine consists of, as the system tells it: the processor's name and caches, the GPUs' names. Without torch.

Files are described in the kernel's documentation: ABI/testing/sysfs-devices-system-cpu (caches), and in NVIDIA's driver
README, chapter "Using the /proc file system interface".
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from hybrid.runtime.control_groups import read
from hybrid.runtime.cores import CPUS, parse_cpus

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name; where the system gives none, its kind (`aarch64`)."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    lines = read(root / "proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def gpu_names(root: Path = Path("/")) -> tuple[str, ...]:
    """Names of the GPUs that NVIDIA's driver runs, in the order of their places on the bus; empty without a driver."""
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        models = [line.partition(":")[2].strip() for line in read(path).splitlines() if line.startswith("Model:")]
        found += models[:1]
    return tuple(found)


def last_level_cache(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int | None:
    """Bytes that the last level of caches of some CPUs holds in all; None where the system does not say.

    allowed: the CPUs; those that the process may run on by default.
    """
    if sys.platform == "darwin":
        sizes = [_sysctl(name) for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize")]
        return next((int(size) for size in sizes if size.isdecimal() and int(size)), None)
    shared: dict[tuple[int, frozenset[int]], int] = {}
    for cpu in allowed or os.sched_getaffinity(0):
        for index in (root / CPUS / f"cpu{cpu}/cache").glob("index*"):
            level, size = read(index / "level"), re.fullmatch(r"(\d+)([KMG]?)", read(index / "size"))
            if level.isdecimal() and size and read(index / "type") in ("Data", "Unified"):
                cpus = frozenset(parse_cpus(read(index / "shared_cpu_list")) | {cpu})
                shared[int(level), cpus] = int(size[1]) * UNITS[size[2]]
    last = max((level for level, _ in shared), default=0)
    return sum(size for (level, _), size in shared.items() if level == last) or None


def _sysctl(name: str) -> str:
    return subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
