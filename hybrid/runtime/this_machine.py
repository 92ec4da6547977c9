"""The figures of this machine, where `hybrid hardware` keeps them: one file for each machine and second device.

Without torch, for `hybrid plan`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hybrid.cache import cache_directory
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.memory import total_memory
from hybrid.runtime.processor import gpu_names, processor_name
from profiler.artifacts import UserError, digest_json
from profiler.hardware import Hardware, read_hardware

SecondDevice = Literal["cuda", "cpu"]
GIB = 1 << 30
NOMINAL = "cpu-stand-in"  # the shipped figures for a machine that was not measured


@dataclass(frozen=True)
class MachineKey:
    """What figures hold for: another processor, GPU, number of threads or size of memory is another machine.

    memory: GiB, rounded, because what the kernel keeps for itself changes.
    """

    processor: str
    threads: int
    gpus: tuple[str, ...]
    memory: int

    @property
    def name(self) -> str:
        """Letters, digits and dashes that say what it is, with a digest of all of it."""
        words = [self.processor, f"{self.threads} threads", *self.gpus, f"{self.memory} GiB"]
        readable = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
        return f"{readable[:80].rstrip('-')}-{digest_json(asdict(self))[:8]}"


def machine_key(threads: int | None = None, root: Path = Path("/")) -> MachineKey:
    """This machine's; threads: of the CPU, where they are not those that the engine takes by default."""
    memory = max(1, round(total_memory(root) / GIB))
    return MachineKey(processor_name(root), threads or usable_cores(root), gpu_names(root), memory)


def measured_path(second_device: SecondDevice | None, threads: int | None = None) -> Path:
    """Where the figures of this machine with a second device are kept, whether or not they were measured."""
    suffix = "" if second_device is None else f"-{second_device}"
    return cache_directory() / "hardware" / f"{machine_key(threads).name}{suffix}.json"


def measure_command(second_device: SecondDevice | None) -> str:
    """What a user types to measure this machine."""
    return "hybrid hardware" if second_device is None else f"hybrid hardware --second-device {second_device}"


def this_machine(second_device: SecondDevice | None = None, threads: int | None = None) -> Hardware | None:
    """The figures measured on this machine with a second device, None where it was not measured.

    second_device: None takes a CUDA device's if they were measured, else the CPU's alone. threads: as in `machine_key`.

    Raises:
        UserError: the file is damaged: names the command that measures anew.
    """
    for device in (second_device,) if second_device else ("cuda", None):
        path = measured_path(device, threads)
        if path.exists():
            try:
                return read_hardware(path)
            except UserError as error:
                raise UserError(f"{error}; measure this machine anew with: {measure_command(device)}") from error
    return None
