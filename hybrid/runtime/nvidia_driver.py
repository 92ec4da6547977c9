"""Whether NVIDIA's driver runs GPUs here, and what it is: asked without torch, which may not see them.

`nvidia-smi` tells names and versions; the newest CUDA that the driver can run is `cuDriverGetVersion` of its library
(docs.nvidia.com/cuda/cuda-driver-api), which needs no context.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.runtime.nvml import visible_device
from hybrid.runtime.processor import gpu_names

QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits")
TORCH_RANGE = "torch>=2.6,<2.14"
# The builds of torch that PyTorch's own index keeps, by the least CUDA version that a driver has to support.
BUILDS = (((13, 0), "cu130"), ((12, 8), "cu128"), ((12, 0), "cu126"))


@dataclass(frozen=True)
class Gpu:
    """One GPU of the driver. compute_capability: `8.9`, empty where it was not told; memory: bytes, None likewise."""

    name: str
    compute_capability: str
    memory: int | None


@dataclass(frozen=True)
class NvidiaDriver:
    """A driver with at least one GPU. version: empty where it was not told. cuda: the newest CUDA that it can run.
    usable: this process is given a GPU, as a container may not be; hidden: CUDA_VISIBLE_DEVICES leaves none of them.
    """

    gpus: tuple[Gpu, ...]
    version: str
    cuda: tuple[int, int] | None
    usable: bool
    hidden: bool


def find_driver(
    root: Path = Path("/"), query: Sequence[str] = QUERY, cuda: Callable[[], int] | None = None
) -> NvidiaDriver | None:
    """The driver, None without one or without a GPU.

    root: where `proc` and `dev` are. query: the command that tells of GPUs. cuda: tells the CUDA version that the
    driver can run, as the number that it has there (12040), 0 for none; None asks the driver's library.
    """
    gpus, version = _told_of(query)
    usable = bool(gpus)
    if not gpus:
        gpus = tuple(Gpu(name, "", None) for name in gpu_names(root))
        usable = (root / "dev/nvidiactl").exists()
    if not gpus:
        return None
    number = (cuda or cuda_version)()
    found = (number // 1000, number % 1000 // 10) if number else None
    return NvidiaDriver(gpus, version, found, usable, visible_device(os.environ) is None)


def cuda_version() -> int:
    """The newest CUDA version that the driver's library can run, such as 12040; 0 where it cannot be loaded."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


def torch_command(cuda: tuple[int, int] | None) -> str | None:
    """What installs a torch that the driver can run; None where the driver is too old for any.

    cuda: see `NvidiaDriver`; None takes the build for the oldest drivers.
    """
    build = BUILDS[-1][1] if cuda is None else next((name for least, name in BUILDS if cuda >= least), None)
    if build is None:
        return None
    return f"pip install --force-reinstall '{TORCH_RANGE}' --index-url https://download.pytorch.org/whl/{build}"


def _told_of(query: Sequence[str]) -> tuple[tuple[Gpu, ...], str]:
    """GPUs and the driver's version, as the command tells them; nothing where it fails."""
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (), ""
    lines = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    whole = [cells for cells in lines if len(cells) == 4 and cells[0]]
    gpus = tuple(Gpu(name, cap, int(size) << 20 if size.isdecimal() else None) for name, _, cap, size in whole)
    return gpus, whole[0][1] if whole else ""
