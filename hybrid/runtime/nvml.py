"""What NVIDIA's driver says of a GPU's memory: what is free, and what this process takes. No CUDA and no torch.

So it can be asked before there is a CUDA context, which is part of what is measured. NVML (docs.nvidia.com/deploy/
nvml-api) is asked through nvidia-ml-py where that is installed, else through nvidia-smi, which tells less.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any


class Nvml:
    """One GPU as NVML knows it. Whatever NVML cannot tell is None.

    module: `pynvml`, initialised. device: its index among the driver's, or its UUID.

    Raises:
        module.NVMLError: there is no such device.
    """

    def __init__(self, module: Any, device: str) -> None:
        self._module = module
        by_index = device.isdecimal()
        self._handle = (
            module.nvmlDeviceGetHandleByIndex(int(device)) if by_index else module.nvmlDeviceGetHandleByUUID(device)
        )

    def free(self) -> int | None:
        """Bytes that no process has taken."""
        try:
            return int(self._module.nvmlDeviceGetMemoryInfo(self._handle).free)
        except self._module.NVMLError:
            return None

    def process(self, number: int) -> int | None:
        """Bytes that the process of that number takes, its context included.

        In a container the driver may know processes by the numbers that they have outside it, so that what is found is
        to be held against what else is known.
        """
        try:
            processes = self._module.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._module.NVMLError:
            return None
        return next((p.usedGpuMemory for p in processes if p.pid == number and p.usedGpuMemory), None)


def open_nvml(device: str) -> Nvml | None:
    """A GPU by index or UUID; None without nvidia-ml-py, a driver, or such a GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return Nvml(pynvml, device)
    except pynvml.NVMLError:
        return None


def visible_device(environment: Mapping[str, str] = os.environ) -> str | None:
    """The GPU that CUDA calls its first, by index or UUID; None where CUDA_VISIBLE_DEVICES hides all.

    Where several GPUs differ, CUDA puts the fastest first unless CUDA_DEVICE_ORDER says otherwise, and the driver does
    not: name the one that is meant.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return "0"
    first = listed.split(",")[0].strip()
    return first if first.isdecimal() or first.startswith(("GPU-", "MIG-")) else None


def free_vram() -> int | None:
    """Bytes that are free of the GPU that CUDA calls its first; None without one."""
    device = visible_device()
    if device is None:
        return None
    nvml = open_nvml(device)
    free = None if nvml is None else nvml.free()
    return _free_by_command(device) if free is None else free


def _free_by_command(device: str) -> int | None:
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={device}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    text = answer.strip()
    return int(text) << 20 if text.isdecimal() else None
