"""What `hybrid doctor` finds of the machine: threads, memory, GPU, drive.

torch is imported where it is looked at, as it may be what does not work.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

from hybrid.cache import cache_directory
from hybrid.runtime.cores import cpu_quota, usable_cores
from hybrid.runtime.memory import available_memory, total_memory
from hybrid.runtime.nvidia_driver import NvidiaDriver, find_driver
from hybrid.runtime.processor import processor_name
from profiler.artifacts import UserError, format_size
from profiler.drive import measure_drive

LITTLE_MEMORY = 2 << 30  # bytes free, below which few models have room
SLOW_DRIVE = 1e9  # bytes per second of long reads, below which a model larger than memory is no pleasure
DRIVE_SECONDS, DRIVE_SCRATCH = 1.0, 128 << 20
BLOCKS, DEPTHS = (4 << 10, 1 << 20), (1, 32)


@dataclass(frozen=True)
class Finding:
    """What a part is. broken, better: what to do where it does not work, or where it could work better; advice: what
    may be done although all is well.
    """

    found: str
    broken: str | None = None
    better: str | None = None
    advice: str | None = None


def threads() -> Finding:
    """How many threads compute, and what bounds their number."""
    used, cpus, quota = usable_cores(), os.cpu_count() or 1, cpu_quota(Path("/"))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus
    found = f"{used} on {processor_name()}, one for each performance core; {cpus} CPUs in all"
    if quota is not None and math.ceil(quota) < allowed:
        better = "give the container more CPUs (docker run --cpus); --threads does not help beyond them"
        return Finding(f"{found}, of which a control group grants the time of {quota:g}", better=better)
    if allowed < cpus:
        return Finding(
            f"{found}, of which this process may use {allowed}", better="start it without taskset or a smaller cpuset"
        )
    return Finding(found)


def memory() -> Finding:
    """How much of host memory a model could take."""
    total, free = total_memory(), available_memory()
    found = f"{format_size(free)} of {format_size(total)} can be taken"
    if free < LITTLE_MEMORY:
        return Finding(found, better="close what uses it; --ram SIZE bounds what a model takes, and reads the rest")
    return Finding(found)


def gpu() -> Finding:
    """What GPU there is, and whether torch computes on it."""
    driver = find_driver()
    import torch

    from hybrid.runtime.cuda_torch import TorchBuild, why_unused

    build = TorchBuild.here()
    if build.works:
        major, minor = torch.cuda.get_device_capability(0)
        free, total = torch.cuda.mem_get_info(0)
        found = (
            f"{torch.cuda.get_device_name(0)}, compute capability {major}.{minor}, {format_size(free)} of "
            f"{format_size(total)} free; torch {build.version} computes on it{_driver_words(driver)}"
        )
        if importlib.util.find_spec("pynvml") is None:
            return Finding(found, better="pip install nvidia-ml-py: the driver then tells what a process takes")
        return Finding(found)
    if driver is None:
        return Finding(f"no NVIDIA GPU; torch {build.version} computes on the CPU")
    return Finding(_gpu_words(driver) + _driver_words(driver), better=why_unused(driver, build))


def triton() -> Finding:
    """Whether the GPU's operators can be compiled."""
    import torch

    from hybrid.ops.cuda import OLDEST, OLDEST_TRITON, available

    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if not torch.cuda.is_available():
        return Finding(f"{version or 'not installed'}; of use with a GPU alone")
    if available(torch.device("cuda", 0)):
        return Finding(f"{version}; the GPU's operators are compiled")
    slower = "; the GPU's operators are torch's, which is slower"
    if torch.cuda.get_device_capability(0) < OLDEST:
        least = ".".join(map(str, OLDEST))
        return Finding(f"{version or 'not installed'}{slower}: Triton serves compute capability {least} and above")
    least = ".".join(map(str, OLDEST_TRITON))
    return Finding(f"{version or 'not installed'}{slower}", better=f"pip install 'triton>={least}'")


def drive(directory: Path | None) -> Finding:
    """How fast what has no room in memory would be read. directory: on the drive; None for the cache folder's."""
    folder = directory or _existing(cache_directory())
    try:
        report = measure_drive(folder, DRIVE_SECONDS, DRIVE_SCRATCH, rounds=2, blocks=BLOCKS, depths=DEPTHS)
    except UserError as error:
        return Finding(f"not measured: {error}", better="name a folder where models lie with --directory")
    speeds = {(speed.block, speed.depth): speed.bandwidth for speed in report.speeds}
    fast = speeds[BLOCKS[-1], DEPTHS[-1]]
    parts = ", ".join(
        f"{speed / 1e9:.2f} GB/s in blocks of {format_size(block)}, {depth} at once"
        for (block, depth), speed in speeds.items()
    )
    found = f"{folder} on {report.file_system}: {parts}"
    if fast < SLOW_DRIVE:
        return Finding(found, better="keep models that are larger than memory on a faster drive, such as NVMe")
    return Finding(found)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _gpu_words(driver: NvidiaDriver) -> str:
    return ", ".join(
        gpu.name
        + (f" (compute capability {gpu.compute_capability})" if gpu.compute_capability else "")
        + (f" with {format_size(gpu.memory)}" if gpu.memory is not None else "")
        for gpu in driver.gpus
    )


def _driver_words(driver: NvidiaDriver | None) -> str:
    if driver is None:
        return ""
    cuda = "" if driver.cuda is None else f", up to CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    return f"; driver {driver.version or 'of unknown version'}{cuda}"
