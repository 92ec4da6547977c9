"""`hybrid hardware`: times this machine with the engine's own operators, once, and keeps what placement needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from hybrid.cache import cache_directory
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.memory import available_memory
from hybrid.runtime.options import check_cores, check_slowdown
from hybrid.runtime.this_machine import SecondDevice, measured_path
from hybrid.runtime.vram import DeviceMemory
from hybrid.stages.hardware_delays import LONG, SHORT, measure_hand_over, measure_link, measure_overhead
from hybrid.stages.hardware_machine import TIMES_THE_CACHE, Delays, Setup, describe, preferred_format, prepare
from hybrid.stages.hardware_units import UnitFigures, measure_units
from hybrid.stages.hardware_weights import Shape
from profiler.artifacts import UserError, explain_os_errors, format_size
from profiler.drive import LEAST_SCRATCH, SCRATCH, DriveReport, measure_drive
from profiler.formats import WEIGHT_FORMATS
from profiler.hardware import Hardware, write_hardware

# Seconds of measuring, without what making weights and writing the scratch file take.
UNITS, DRIVE, LINK, OVERHEAD, HAND_OVER = 32.0, 6.0, 2.0, 2.0, 4.0
QUICK = 0.2  # of those, for a first look: a quarter of a minute
LARGE_SPREAD = 0.15
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HardwareSettings:
    """second_device: what the GPU is; None takes a CUDA device where there is one, else describes the CPU alone.
    threads: of the CPU, None as the engine chooses. directory: a folder on the drive that models lie on; None takes the
    cache's. flash: whether the drive is timed. output: the file; None keeps it where `this_machine` finds it.
    slowdown, cores: of `EngineOptions`, for figures of such an engine; they belong into a file of their own.
    scale: of the time that it takes, QUICK for a first look. shape: of the operators; None takes a 7B model's.
    """

    second_device: SecondDevice | None = None
    formats: tuple[str, ...] = WEIGHT_FORMATS
    threads: int | None = None
    directory: Path | None = None
    flash: bool = True
    output: Path | None = None
    slowdown: Mapping[str, float] = field(default_factory=dict)
    cores: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scale: float = 1.0
    shape: Shape | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in WEIGHT_FORMATS]
        if unknown or not self.formats or len(set(self.formats)) < len(self.formats):
            what = f"{unknown[0]!r} is not a format of weights" if unknown else "name formats of weights, each once"
            raise UserError(f"{what}; formats are {', '.join(WEIGHT_FORMATS)}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"{self.threads} threads make no sense; give 1 to 1024, or leave it to the machine")
        check_slowdown(self.slowdown, self.second_device)
        check_cores(self.cores, self.threads, self.second_device)
        if (self.slowdown or self.cores) and self.output is None:
            raise UserError(
                "figures of units that are slowed or have cores of their own are not those that plans are made with by "
                "default: name a file for them with --output"
            )

    def seconds(self, full: float) -> float:
        """What is spent on something that deserves so many seconds."""
        return full * self.scale


@dataclass(frozen=True)
class HardwareReport:
    """What was measured, where it was written, and what is free now.

    second_device: what the GPU was, None for the CPU alone. threads, free: of units by name, the latter in bytes.
    short_hand_over: seconds of a hand-over where so little lies between it and the one before that waiting threads keep
    watching. hand_over_apart: seconds between the quartiles of what either took in the rounds, short one first.
    link_spread: as of readings. weights: bytes of weights of each format that operators went through in turn. notes:
    what a reader should know of the figures.
    """

    path: Path
    hardware: Hardware
    second_device: SecondDevice | None
    threads: dict[str, int]
    free: dict[str, int]
    drive: DriveReport | None
    short_hand_over: float
    hand_over_apart: tuple[float, float]
    link_spread: float
    weights: int
    seconds: float
    notes: tuple[str, ...]


def measure(
    settings: HardwareSettings, tell: Tell = lambda stage, done, total: None, memory: DeviceMemory | None = None
) -> HardwareReport:
    """Time everything and write it: in about a minute. memory: of a CUDA device; None asks it.

    Raises:
        UserError: there is no such device, the file cannot be written, the drive cannot be measured.
    """
    began = time.perf_counter()
    device = settings.second_device or ("cuda" if torch.cuda.is_available() else None)
    path = settings.output or measured_path(device, settings.threads)
    require_writable(path)
    threads = settings.threads or usable_cores()
    setup = prepare(device, threads, settings.shape, settings.scale, settings.slowdown, settings.cores, memory)
    drive = _drive(settings, tell) if settings.flash else None
    figures = measure_units(setup.units, settings.formats, setup.shape, settings.seconds(UNITS), tell)
    delays = _delays(settings, setup, figures, tell)
    hardware = describe(setup, settings.threads, figures, delays, drive)
    write_hardware(path, hardware)
    free = {"cpu": available_memory()}
    if device == "cuda":
        free["gpu"] = setup.memory.free()
    return HardwareReport(
        path=path,
        hardware=hardware,
        second_device=device,
        threads={measured.unit.name: measured.threads for measured in setup.used},
        free=free,
        drive=drive,
        short_hand_over=delays.hand_over.seconds,
        hand_over_apart=(delays.hand_over.apart, delays.long_hand_over.apart),
        link_spread=delays.link.spread,
        weights=setup.shape.least,
        seconds=time.perf_counter() - began,
        notes=tuple(_notes(settings, setup, figures, delays, drive)),
    )


def require_writable(path: Path) -> None:
    """Fail before a minute of measuring where its result cannot be written; makes the folder."""
    with explain_os_errors(f"write {path.name}", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")


def _drive(settings: HardwareSettings, tell: Tell) -> DriveReport:
    folder = settings.directory
    if folder is None:
        folder = cache_directory()
        folder.mkdir(parents=True, exist_ok=True)
    size = max(LEAST_SCRATCH, int(settings.scale * SCRATCH))
    return measure_drive(folder, settings.seconds(DRIVE), size, tell=partial(tell, "drive"))


def _delays(settings: HardwareSettings, setup: Setup, figures: UnitFigures, tell: Tell) -> Delays:
    near, far = setup.near, setup.far
    tell("delays", 0, 3)
    link = measure_link(near.unit, 2 * (setup.cache or 0), settings.seconds(LINK))
    tell("delays", 1, 3)
    seconds = settings.seconds(OVERHEAD) / len(setup.used)
    overheads = {used.unit.name: measure_overhead(used.unit, used.threads, seconds) for used in setup.used}
    tell("delays", 2, 3)
    speeds = figures.speeds.get("gpu") or figures.speeds["cpu"]
    speed, shape = speeds[preferred_format(speeds)].dense, setup.shape
    seconds = settings.seconds(HAND_OVER) / 2
    short, long = (
        measure_hand_over(near.unit, far.unit, shape.hidden, shape.neurons, speed, between, seconds)
        for between in (SHORT, LONG)
    )
    tell("delays", 3, 3)
    return Delays(link, overheads, short, long)


def _notes(
    settings: HardwareSettings, setup: Setup, figures: UnitFigures, delays: Delays, drive: DriveReport | None
) -> list[str]:
    """What a reader should know of how far the figures can be relied on."""
    notes = []
    spreads = {f"{r.unit} {r.weight_format} {r.access}": r.spread for r in figures.readings}
    spreads |= {"hand-overs": delays.long_hand_over.apart / LONG, "the link": delays.link.spread}
    if drive is not None:
        spreads["the drive"] = drive.spread
    widest = max(spreads, key=lambda name: spreads[name])
    if spreads[widest] > LARGE_SPREAD:
        notes.append(
            f"noise: the middle half of the rounds lies up to {spreads[widest]:.0%} apart ({widest}); something else "
            "uses this machine, so measure again when it is quiet"
        )
    if settings.shape is None and setup.cache and setup.shape.least < TIMES_THE_CACHE * setup.cache:
        notes.append(
            f"little memory is free: weights of {format_size(setup.shape.least)} took turns, and caches hold "
            f"{format_size(setup.cache)}, so that figures may be too high"
        )
    if setup.device is None:
        notes.append("no GPU: both units are the CPU, so that no plan is faster for using both")
    if drive is None:
        notes.append("no figures of a drive: plans cannot leave rows on flash")
    elif not drive.direct:
        notes.append(
            f"{drive.file_system} allows no reads past the page cache, which was dropped before each round instead"
        )
    return notes
