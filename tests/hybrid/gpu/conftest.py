"""Plans for the GPU that is here, whatever a process takes of it by being there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hybrid.runtime.cuda_memory import cuda_memory
from hybrid.runtime.vram import context_cost
from hybrid.stages.plan import PlanSettings
from profiler.hardware import Hardware, read_hardware, write_hardware

LATER = 64 << 20  # bytes of kernels that other tests may load meanwhile


@pytest.fixture
def gpu_machine() -> Hardware:
    """Nominal figures, by which a GPU is four times as fast as the CPU, with the context that was measured here."""
    stand_in, memory = read_hardware("cpu-stand-in"), cuda_memory()
    gpu = replace(stand_in.gpu, memory=memory.total())
    return replace(stand_in, name="gpu-here", gpu=gpu, context_bytes=context_cost(0, memory) + LATER)


@pytest.fixture
def settings_within(gpu_machine, tmp_path) -> Callable[..., PlanSettings]:
    """`settings_within(size, **settings)`: of a plan that has so many bytes for a model, beside the context."""
    path = tmp_path / "gpu-here.json"
    write_hardware(path, gpu_machine)

    def make(size: int, **settings: Any) -> PlanSettings:
        return PlanSettings(vram=gpu_machine.context + size, hardware=str(path), **settings)

    return make
