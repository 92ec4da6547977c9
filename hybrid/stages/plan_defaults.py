"""What a plan is made with where the user does not say: the machine's figures, and budgets of what is free."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from hybrid.runtime.memory import available_memory
from hybrid.runtime.this_machine import NOMINAL, SecondDevice, measure_command, this_machine
from profiler.artifacts import UserError, format_size
from profiler.hardware import Hardware, read_hardware

MARGIN_SHARE, LEAST_MARGIN = 1 / 16, 512 << 20  # of GPU memory: the CUDA context, kernels, and what others may take
RAM_MARGIN_SHARE = 1 / 4  # of a machine that is not here: its system and other programs


@dataclass(frozen=True)
class Given:
    """A machine and budgets, with what a user should know of where they come from."""

    hardware: Hardware
    vram: int
    ram: int | None
    notes: tuple[str, ...]


def resolve(hardware: str | None, second_device: SecondDevice | None, vram: int | None, ram: int | None) -> Given:
    """The figures and budgets to plan with.

    hardware: a shipped name or a file; None takes this machine's measured figures, else nominal ones. vram: None takes
    what is free less a margin, or what a machine that is not here has, less a margin; 0 where there is no GPU. ram:
    None sets no limit on this machine, and on another what it has less a margin.

    Raises:
        UserError: figures that cannot be read, or more GPU memory than is free.
    """
    notes: list[str] = []
    machine = _machine(hardware, second_device, vram, notes)
    here = hardware is None or machine.measured
    if vram is None:
        vram = _free_vram(notes) if here else _less_margin(machine, notes)
    if ram is None and not here and machine.cpu.memory is not None:
        ram = int(machine.cpu.memory * (1 - RAM_MARGIN_SHARE))
        notes.append(f"RAM: {format_size(ram)}, three quarters of what {machine.name} has")
    return Given(machine, vram, ram, tuple(notes))


def ram_note(taken: int) -> str | None:
    """What to say where the part of a plan that is in RAM is more than is free here."""
    free = available_memory()
    if taken <= free:
        return None
    return (
        f"{format_size(taken)} are to be in RAM and {format_size(free)} are free: what does not stay there is read "
        "again from the drive; --ram SIZE plans for it"
    )


def free_vram() -> int | None:
    """Bytes of the first NVIDIA GPU that are free, by its driver; None without one. torch is not needed."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    text = answer.strip()
    return int(text) << 20 if text.isdecimal() else None


def _machine(name: str | None, device: SecondDevice | None, vram: int | None, notes: list[str]) -> Hardware:
    if name is not None:
        return read_hardware(name)
    # Figures of a CPU alone say nothing of a second device; a budget for one asks for those of whichever was measured.
    devices: tuple[SecondDevice | None, ...] = (device,) if device else (("cuda", "cpu") if vram else (None,))
    for candidate in devices:
        if found := this_machine(candidate):
            return found
    command = measure_command(devices[0] if device or not vram else None)
    notes.append(f"this machine was not measured: figures are those of {NOMINAL}, nominal; measure it with: {command}")
    return read_hardware(NOMINAL)


def _free_vram(notes: list[str]) -> int:
    free = free_vram()
    if free is None:
        notes.append("no NVIDIA GPU was found, so nothing is placed on one; --vram SIZE plans for one all the same")
        return 0
    margin = max(LEAST_MARGIN, int(free * MARGIN_SHARE))
    notes.append(f"GPU memory: {format_size(free)} are free, less a margin of {format_size(margin)}")
    return max(0, free - margin)


def _less_margin(machine: Hardware, notes: list[str]) -> int:
    if machine.gpu.memory is None:
        raise UserError(f"{machine.name} does not say how much memory its GPU has; give it with: --vram SIZE")
    margin = max(LEAST_MARGIN, int(machine.gpu.memory * MARGIN_SHARE))
    notes.append(f"GPU memory: {format_size(machine.gpu.memory)}, less a margin of {format_size(margin)}")
    return max(0, machine.gpu.memory - margin)
