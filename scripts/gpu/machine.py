"""The machine that figures are of: its name, what it is made of, and the versions of what computes."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hybrid.ops import cpu
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.memory import total_memory
from hybrid.runtime.processor import processor_name

PACKAGES = ("torch", "triton", "accelerate", "transformers", "numpy")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on; `device` is what the GPU is."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    described: dict[str, Any] = {
        "gpu": None,
        "processor": processor_name(),
        "isa": cpu.isa(),
        "threads": usable_cores(),
        "cpus": os.cpu_count(),
        "memory": total_memory(),
        "python": platform.python_version(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        described |= {
            "gpu": found.name,
            "gpu_memory": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "compute_capability": f"{found.major}.{found.minor}",
        }
    return described


def short_name(described: dict[str, Any]) -> str:
    """For a file: `nvidia-h200`, or `stand-in`."""
    return re.sub(r"[^a-z0-9]+", "-", str(described["gpu"] or "stand-in").lower()).strip("-")
