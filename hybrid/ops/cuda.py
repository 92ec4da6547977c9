"""Whether the device operators, in `cuda_weights` and `cuda_states`, can serve a device; without importing Triton."""

from __future__ import annotations

import importlib.metadata
import os

import torch

OLDEST = (8, 0)  # compute capability that Triton compiles for
OLDEST_TRITON = (3, 6)  # that has what kernels are written with


def available(device: torch.device) -> bool:
    """Whether `cuda_weights` and `cuda_states` can be imported and take tensors on a device.

    With Triton 3.6 or later they serve CUDA devices, and under its interpreter (TRITON_INTERPRET=1 in the environment,
    before Triton is first imported) the CPU instead.
    """
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    if (int(major), int(minor)) < OLDEST_TRITON:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda":
        return interpreted and device.type == "cpu"
    if interpreted or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST
