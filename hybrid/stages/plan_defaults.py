"""What a plan is made with where the user does not say: the machine's figures, and budgets of what is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybrid.runtime.memory import available_memory
from hybrid.runtime.nvml import free_vram
from hybrid.runtime.this_machine import NOMINAL, SecondDevice, measure_command, this_machine
from profiler.artifacts import UserError, format_size
from profiler.hardware import NOMINAL_CONTEXT, Hardware, read_hardware

# Of GPU memory: what others may take before a plan is used. What the process itself takes is a line of the plan.
MARGIN_SHARE, LEAST_MARGIN = 1 / 16, 512 << 20
RAM_MARGIN_SHARE = 1 / 4  # of a machine that is not here: its system and other programs


@dataclass(frozen=True)
class Given:
    """A machine and budgets, with what a user should know of where they come from."""

    hardware: Hardware
    vram: int
    ram: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Free:
    """Bytes that can be taken now: of this machine's GPU, None without one, and of host memory."""

    gpu: int | None
    host: int

    @staticmethod
    def now() -> Free:
        """Asks the system."""
        return Free(free_vram(), available_memory())


def resolve(
    hardware: str | None,
    second_device: SecondDevice | None,
    vram: int | None,
    ram: int | None,
    free: Free | None = None,
) -> Given:
    """The figures and budgets to plan with.

    hardware: a shipped name or a file; None takes this machine's measured figures, else nominal ones. vram: None takes
    what is free less a margin, or what a machine that is not here has, less a margin; 0 where there is no GPU. ram:
    None sets no limit on this machine, and on another what it has less a margin. free: of this machine; None asks it.

    Raises:
        UserError: figures that cannot be read, or more GPU memory than this machine has free.
    """
    notes: list[str] = []
    machine, device = _machine(hardware, second_device, vram, notes)
    here = hardware is None or machine.measured
    free = free or (Free.now() if here else Free(None, 0))
    if hardware is None:
        _require_free(vram or 0, free, second_device)
        if free.gpu is not None and second_device != "cpu" and device != "cuda":
            machine = replace(machine, context_bytes=NOMINAL_CONTEXT)  # what stands for the GPU says nothing of it
    if vram is None:
        vram = _free_vram(free, notes) if here else _less_margin(machine, notes)
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


def context_note(machine: Hardware, taken: int) -> str | None:
    """What to say of the GPU memory that a plan takes the process itself to need."""
    if not taken or (machine.measured and machine.context_bytes is not None):
        return None
    return (
        f"the CUDA context and kernels are taken to need {format_size(taken)} of GPU memory, which is nominal, not "
        "measured; hybrid hardware measures it"
    )


def _require_free(vram: int, free: Free, device: SecondDevice | None) -> None:
    found = free.host if device == "cpu" else free.gpu
    if found is not None and vram > found:
        where = "host memory" if device == "cpu" else "GPU memory"
        raise UserError(
            f"--vram asks for {format_size(vram)} and {format_size(found)} of {where} are free; close what uses it, "
            f"or ask for --vram {found >> 20}MiB or less; another machine is planned for with: hybrid plan --hardware"
        )


def _machine(
    name: str | None, device: SecondDevice | None, vram: int | None, notes: list[str]
) -> tuple[Hardware, SecondDevice | None]:
    """The figures, and which of this machine's second devices they are of, if any."""
    if name is not None:
        return read_hardware(name), None
    # Figures of a CPU alone say nothing of a second device; a budget for one asks for those of whichever was measured.
    devices: tuple[SecondDevice | None, ...] = (device,) if device else (("cuda", "cpu") if vram else (None,))
    for candidate in devices:
        if found := this_machine(candidate):
            return found, candidate or ("cuda" if found.gpu.memory is not None else None)
    command = measure_command(devices[0] if device or not vram else None)
    notes.append(f"this machine was not measured: figures are those of {NOMINAL}, nominal; measure it with: {command}")
    return read_hardware(NOMINAL), None


def _free_vram(free: Free, notes: list[str]) -> int:
    if free.gpu is None:
        notes.append("no NVIDIA GPU was found, so nothing is placed on one; --vram SIZE plans for one all the same")
        return 0
    margin = _margin(free.gpu)
    notes.append(f"GPU memory: {format_size(free.gpu)} are free, less a margin of {format_size(margin)}")
    return max(0, free.gpu - margin)


def _margin(free: int) -> int:
    return max(LEAST_MARGIN, int(free * MARGIN_SHARE))


def _less_margin(machine: Hardware, notes: list[str]) -> int:
    if machine.gpu.memory is None:
        raise UserError(f"{machine.name} does not say how much memory its GPU has; give it with: --vram SIZE")
    margin = _margin(machine.gpu.memory)
    notes.append(f"GPU memory: {format_size(machine.gpu.memory)}, less a margin of {format_size(margin)}")
    return max(0, machine.gpu.memory - margin)
