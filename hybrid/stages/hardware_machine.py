"""The units of this machine as the engine uses them, to be measured; and its description, once they are."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import MappingProxyType

import torch

from hybrid.ops import cpu
from hybrid.runtime.cores import require_cores, shared_cores
from hybrid.runtime.cuda_memory import device_memory
from hybrid.runtime.memory import available_memory, total_memory
from hybrid.runtime.processor import last_level_cache, processor_name
from hybrid.runtime.this_machine import SecondDevice, machine_key
from hybrid.runtime.unit import Unit, cuda_unit, host_unit, stand_in_unit
from hybrid.runtime.vram import DeviceMemory, HostMemory, context_cost
from hybrid.stages.hardware_delays import Link, Measurement
from hybrid.stages.hardware_units import Measured, UnitFigures
from hybrid.stages.hardware_weights import Shape
from profiler.artifacts import format_size
from profiler.drive import DriveReport
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit, Speed

UNKNOWN_CACHE = 64 << 20  # bytes that are assumed where the system does not tell
TIMES_THE_CACHE = 8  # what weights take at least: of what is read again in turn, a cache keeps at most an eighth
# And about what a model takes: scattered 4-bit rows were read at 20 GB/s from 256 MiB and at 15 from 2 GiB, where
# translating addresses takes memory of its own.
SPREAD_OVER = 2 << 30
SHARE_OF_MEMORY = 8  # of what is free: weights of one format on one unit take at most one such part
BUDGET = 1 << 50  # of a unit that is only measured
PREFERRED = ("f16", "bf16")  # whose figures stand for formats that were not measured


@dataclass(frozen=True)
class Setup:
    """What is measured. device: what the GPU is, None for the CPU alone. units: those whose operators are timed. near,
    far: between which work is handed over. memory: of the near unit. slowdown: of units by name, where they are slowed.
    cache: bytes of the largest last level of caches, None if unknown.
    """

    device: SecondDevice | None
    slowdown: Mapping[str, float]
    units: tuple[Measured, ...]
    near: Measured
    far: Measured
    memory: DeviceMemory
    cache: int | None
    shape: Shape

    @property
    def used(self) -> tuple[Measured, ...]:
        """Units as the engine runs them, whose figures are kept."""
        return tuple(measured for measured in self.units if measured.used)


@dataclass(frozen=True)
class Delays:
    """What does not grow with weights, in seconds. overheads: of units by name. hand_over: with so little between two
    of them that waiting threads keep watching; long_hand_over: with so much that they fall asleep.
    """

    link: Link
    overheads: Mapping[str, float]
    hand_over: Measurement
    long_hand_over: Measurement


def prepare(
    device: SecondDevice | None,
    threads: int,
    shape: Shape | None,
    scale: float = 1.0,
    slowdown: Mapping[str, float] = MappingProxyType({}),
    cores: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    memory: DeviceMemory | None = None,
) -> Setup:
    """The units: as the engine shares threads among them, and the host with 1, 2, 4 and more of them up to all.

    shape: of operators; None takes a 7B model's, spread over so much memory that no cache helps, less where `scale` is.
    slowdown, cores: of `EngineOptions`; with them the host is measured as it is used alone. memory: of a CUDA device;
    None asks it.

    Raises:
        UserError: no CUDA device where one is asked for, no memory for a stand-in, or cores that are not to be used.
    """
    require_cores([core for of_unit in cores.values() for core in of_unit])
    host, theirs = ((slowdown.get(name, 1.0), cores.get(name, ())) for name in ("cpu", "gpu"))
    shares = (threads, 0) if device == "cuda" else shared_cores(threads)
    if device != "cuda":
        memory = HostMemory()  # where a machine has a GPU too, that is left alone
    memory = memory or device_memory(device)
    near = _measured(
        cuda_unit(BUDGET, memory) if device == "cuda" else stand_in_unit(shares[1], BUDGET, memory, *theirs)
    )
    far = _measured(host_unit(shares[0], *host))
    used = (far, near) if device else (_measured(host_unit(threads, *host)),)
    counts = {1 << power for power in range(threads.bit_length())} | {threads}  # 1, 2, 4, … and all
    if slowdown or cores:
        counts = set()
    others = (_measured(host_unit(count), used=False) for count in sorted(counts - {used[0].threads}))
    caches = [last_level_cache()]
    if device == "cuda":
        caches.append(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", None))
    cache = max((size for size in caches if size), default=None)
    if shape is None:
        least = max(TIMES_THE_CACHE * (cache or UNKNOWN_CACHE), int(scale * SPREAD_OVER))
        shape = Shape(max(1, min(least, available_memory() // SHARE_OF_MEMORY)))
    return Setup(device, dict(slowdown), (*used, *others), near, far, memory, cache, shape)


def _measured(unit: Unit, used: bool = True) -> Measured:
    return Measured(unit, 0 if unit.pool is None else unit.pool.threads, used)


def describe(
    setup: Setup, threads: int | None, figures: UnitFigures, delays: Delays, drive: DriveReport | None
) -> Hardware:
    """The machine's figures. threads: where they were chosen.

    A hand-over is the synchronisation of PowerInfer as well: results of both units are made one by joining and adding.
    It is that of threads that have fallen asleep, as they do between layers of models that are worth splitting.
    The CPU alone is described as two units that are both the CPU and that, together, do what they do in turns. So there
    is a time for every plan, and none is better for computing on both.
    """
    slowdown = figures.contention()
    units = {}
    for name, speeds in figures.speeds.items():
        preferred = speeds[preferred_format(speeds)]
        memory = total_memory() if name == "cpu" else None
        if name == "gpu" and setup.device == "cuda":
            memory = setup.memory.total()
        overhead = delays.overheads[name]
        units[name] = ComputeUnit(preferred.dense, overhead, slowdown[name], preferred.flops, memory, speeds)
    if setup.device is None:
        units["cpu"] = replace(units["cpu"], contention=2.0)
        units["gpu"] = replace(units["cpu"], memory=None)
    key = machine_key(threads)
    return Hardware(
        name=key.name if setup.device is None else f"{key.name}-{setup.device}",
        description=_description(setup, drive),
        gpu=units["gpu"],
        cpu=units["cpu"],
        link_bandwidth=delays.link.there,
        back_bandwidth=delays.link.back,
        hand_over=delays.long_hand_over.seconds,
        sync=delays.long_hand_over.seconds,
        measured=True,
        flash=() if drive is None else drive.speeds,
        readings=tuple(figures.readings),
        context_bytes=context_cost(0, setup.memory),  # now that every operator has run
    )


def preferred_format(speeds: Mapping[str, Speed]) -> str:
    """The format whose figures stand for those that were not measured: a 16-bit one, else the first."""
    return next((name for name in PREFERRED if name in speeds), next(iter(speeds)))


def _description(setup: Setup, drive: DriveReport | None) -> str:
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    memory = format_size(total_memory())
    program = f"hybrid {version('hybrid-inference')}"
    words = [f"Measured on {day} by {program}: {processor_name()} ({cpu.isa()}), {memory} of memory."]
    if setup.device == "cuda":
        words.append(f"The GPU is an {torch.cuda.get_device_name(0)}; {_threads(setup.far)} on the CPU.")
    elif setup.device == "cpu":
        words.append(
            "The GPU is a stand-in made of ordinary memory, "
            f"with {_threads(setup.near)} of its own beside {_threads(setup.far)} of the CPU."
        )
    else:
        words.append(
            f"There is no GPU: both units are the CPU with {_threads(setup.used[0])}, and in turns they do what they "
            "do together; a hand-over is that of a stand-in made of ordinary memory."
        )
    if setup.slowdown:
        ratios = " and ".join(f"the {name} {ratio:g} times" for name, ratio in setup.slowdown.items())
        words.append(f"Slowed on purpose: {ratios}.")
    if drive is not None:
        how = "past the page cache" if drive.direct else "the page cache dropped before each round"
        words.append(f"Flash: random reads on {drive.file_system}, {how}.")
    return " ".join(words)


def _threads(measured: Measured) -> str:
    return f"{measured.threads} thread{'s' * (measured.threads != 1)}"
