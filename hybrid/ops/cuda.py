"""Whether the device operators, in `cuda_weights` and `cuda_states`, can serve a device; without importing Triton."""

from __future__ import annotations

import importlib.util
import os

import torch

OLDEST = (8, 0)  # compute capability that Triton compiles for


def available(device: torch.device) -> bool:
    """Whether `cuda_weights` and `cuda_states` can be imported and take tensors on a device.

    With Triton they serve CUDA devices, and under its interpreter (TRITON_INTERPRET=1 in the environment, before Triton
    is first imported) the CPU instead.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda":
        return interpreted and device.type == "cpu"
    if interpreted or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST
