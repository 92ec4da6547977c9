"""The memory of the first CUDA device, as the driver and torch tell it. Thin: what follows from it is in `vram`.

Nothing here runs without a GPU. The limit is the caching allocator's, which holds for the whole process: once it is
reached, cached memory is freed, and what then still does not fit is `torch.OutOfMemoryError`.
"""

from __future__ import annotations

import os
from functools import cache

import torch

from hybrid.ops.cuda import available
from hybrid.runtime.nvml import Nvml, free_vram, open_nvml, visible_device
from hybrid.runtime.vram import Allowances, DeviceMemory, HostMemory
from profiler.artifacts import UserError
from profiler.hardware import NOMINAL_CONTEXT

# Bytes that the driver may take once an engine runs, for kernels that are loaded when first launched and for CUDA
# graphs; and those of segments (20 MiB, and 2 MiB for what is small) of which the allocator uses a part. Not measured.
GROWTH = 32 << 20
ROUNDING = 32 << 20
DEVICE = 0


class CudaMemory:
    """See `DeviceMemory`. Made once in a process, before anything of this program is on the device."""

    where = "GPU memory"
    growth = GROWTH
    rounding = ROUNDING

    def __init__(self) -> None:
        untouched = not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        free_before = free_vram() if untouched else None
        warm_up()
        self._nvml = _nvml_of(DEVICE)
        # The workspace that a first product leaves with the allocator is as much a part of being there as the context.
        self._kept = torch.cuda.memory_reserved(DEVICE) if untouched else 0
        self._total = torch.cuda.mem_get_info(DEVICE)[1]
        if free_before is None:  # nobody says what the context took
            free_before = self.free() + torch.cuda.memory_reserved(DEVICE) + NOMINAL_CONTEXT - GROWTH - ROUNDING
        self._free_before = free_before
        self._allowances = Allowances()

    def total(self) -> int:
        """See `DeviceMemory`."""
        return self._total

    def free(self) -> int:
        """See `DeviceMemory`."""
        return torch.cuda.mem_get_info(DEVICE)[0]

    def context(self) -> int:
        """See `DeviceMemory`."""
        return self.process() - torch.cuda.memory_reserved(DEVICE) + self._kept

    def process(self) -> int:
        """See `DeviceMemory`: as the driver counts it, or what is less free than before there was a context.

        A figure that does not hold what the allocator does is another process's, which has this one's number outside a
        container.
        """
        reserved = torch.cuda.memory_reserved(DEVICE)
        used = None if self._nvml is None else self._nvml.process(os.getpid())
        if used is not None and reserved < used <= self._total:
            return used
        return max(self._free_before - self.free(), reserved + 1)

    def allow(self, size: int) -> None:
        """See `DeviceMemory`."""
        torch.cuda.empty_cache()
        limit = self._allowances.add(size, torch.cuda.memory_reserved(DEVICE))
        share = 1.0 if limit is None else min(1.0, limit / self._total)
        torch.cuda.set_per_process_memory_fraction(share, DEVICE)

    def give_back(self) -> None:
        """See `DeviceMemory`."""
        torch.cuda.empty_cache()


@cache
def cuda_memory() -> CudaMemory:
    """The first CUDA device's memory; makes a context there.

    Raises:
        UserError: torch sees no CUDA device, or cannot use it, as where others have filled it.
    """
    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; name --second-device cpu for a stand-in made of memory")
    try:
        return CudaMemory()
    except RuntimeError as error:  # torch's own, and the driver's
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the GPU cannot be used ({said}); close what uses it, or leave it alone with --vram 0"
        ) from error


def device_memory(second_device: str | None) -> DeviceMemory:
    """The memory of what a plan's GPU is: `cuda` or None the first CUDA device, else ordinary memory.

    Raises:
        UserError: torch sees no CUDA device, or cannot use it.
    """
    return cuda_memory() if second_device in ("cuda", None) else HostMemory()


def warm_up() -> None:
    """Make the context, load the library of matrix products, and launch kernels: what it takes to compute there."""
    device = torch.device("cuda", DEVICE)
    x = torch.ones(1, 64, 64, device=device)
    y = x @ x
    if available(device):
        from hybrid.ops.cuda_states import norm  # takes Triton, which not every device has

        norm(x, y[0, 0].contiguous(), None, False, 1e-6, y)
    float(y.sum())
    del x, y
    torch.cuda.synchronize(DEVICE)
    torch.cuda.empty_cache()


def _nvml_of(device: int) -> Nvml | None:
    """The driver's view of torch's device, by the UUID that both know; by its index where torch knows none."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return open_nvml(visible_device() or "0" if uuid is None else f"GPU-{uuid}")
