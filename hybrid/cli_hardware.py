"""`hybrid hardware` on the command line, and its figures as people read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid import display
from hybrid.cli_options import Device, JsonOption, SlowdownOption, ThreadsOption, device_name, parse_slowdown
from hybrid.exits import loading
from hybrid.reports import table
from profiler.artifacts import UserError, format_size
from profiler.formats import WEIGHT_FORMATS
from profiler.hardware import Hardware, read_hardware, shipped_hardware
from profiler.speeds import Reading

if TYPE_CHECKING:
    from hybrid.stages.hardware import HardwareReport


def hardware(
    second_device: Annotated[
        Device | None,
        typer.Option(
            "--second-device",
            help="What the GPU is: `cuda`, or `cpu` for a stand-in made of memory; by default a CUDA device if any.",
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option(metavar="NAMES", help="Formats of weights to measure, with commas between them.")
    ] = ",".join(WEIGHT_FORMATS),
    threads: ThreadsOption = None,
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder on the drive that models lie on; by default hybrid's cache folder."),
    ] = None,
    no_flash: Annotated[bool, typer.Option("--no-flash", help="Leave the drive out.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there; by default where `hybrid plan` finds it."),
    ] = None,
    slowdown: SlowdownOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="A quarter of the time, and less certain.")] = False,
    list_shipped: Annotated[
        bool, typer.Option("--list", help="Show the machines that hybrid knows without measuring; measure nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine once, with the engine's own operators: about a minute in which it should do nothing else.

    Bandwidth of memory by weight format, one row after the other and scattered, for each number of threads and while
    the other unit works; a hand-over between the units; the link; random reads of the drive. `hybrid plan` uses what is
    kept.

    Example: hybrid hardware

    Example: hybrid hardware --second-device cpu --formats f16,q4_0 --directory ~/models
    """
    if list_shipped:
        known = [read_hardware(name) for name in shipped_hardware()]
        if as_json:
            display.write_json("hybrid.machines/1", {"machines": known})
        else:
            display.write("\n".join(shipped_lines(known)) + "\n")
        return
    if no_flash and directory is not None:
        raise UserError("--directory names the drive that --no-flash leaves out; give one of them")
    with loading():
        from hybrid.stages.hardware import QUICK, HardwareSettings, measure

    settings = HardwareSettings(
        second_device=device_name(second_device),
        formats=tuple(name.strip() for name in formats.split(",") if name.strip()),
        threads=threads,
        directory=directory,
        flash=not no_flash,
        output=output,
        slowdown=parse_slowdown(slowdown),
        scale=QUICK if quick else 1.0,
    )
    with display.stages() as tell:
        report = measure(settings, tell)
    display.show(as_json, "hybrid.hardware/1", report, lambda: hardware_lines(report))


def hardware_lines(report: HardwareReport) -> list[str]:
    """What was measured, in tables, with what is doubtful about it."""
    machine = report.hardware
    link = f"{giga(machine.link_bandwidth)} GB/s to the GPU, {giga(machine.back_bandwidth)} GB/s back"
    apart, long_apart = report.hand_over_apart
    lines = [
        machine.description,
        "",
        f"GB/s of weights that operators read; {format_size(report.weights)} of each format take turns. dense: a "
        "projection; rows: a tenth of a layer's rows; passed: all of them",
        "",
        *reading_lines(machine.readings),
        "",
        *unit_lines(report),
        "",
        f"link: {link}, spread {report.link_spread:.0%}",
        f"one hand-over: {micro(machine.hand_over)} between layers of a millisecond, as threads fall asleep, rounds "
        f"{micro(long_apart)} apart; {micro(report.short_hand_over)} where they keep watching, {micro(apart)} apart",
    ]
    if machine.context_bytes:
        taken = format_size(machine.context_bytes)
        lines.append(f"{taken} of GPU memory go to the CUDA context, libraries and kernels")
    if machine.flash:
        lines += ["", *flash_lines(machine)]
    lines += ["", *report.notes] if report.notes else []
    return [*lines, "", f"{report.path}: written after {report.seconds:.0f} s"]


def reading_lines(readings: tuple[Reading, ...]) -> list[str]:
    """A row for each unit, format and access; a column for each number of threads, then beside the other unit."""
    counts = sorted({reading.threads for reading in readings})
    beside = any(reading.beside for reading in readings)
    header = ["", *("GPU" if not count else f"{count} thread{'s' * (count > 1)}" for count in counts)]
    header += ["beside the other"] * beside + ["spread"]
    rows = []
    for where in dict.fromkeys((r.unit, r.weight_format, r.access) for r in readings):
        here = [r for r in readings if (r.unit, r.weight_format, r.access) == where]
        alone = {r.threads: giga(r.bandwidth) for r in here if not r.beside}
        together = [f"{giga(r.bandwidth)} ({r.threads or 'GPU'})" for r in here if r.beside]
        cells = [alone.get(count, "") for count in counts] + (together or [""]) * beside
        rows.append([" ".join(where), *cells, f"{max(r.spread for r in here):.0%}"])
    return table(header, rows)


def unit_lines(report: HardwareReport) -> list[str]:
    """What the engine's units are taken for."""
    header = ["unit", "threads", "contention", "an operator", "GFLOP/s", "memory", "free"]
    rows = []
    for name in report.threads:
        unit = report.hardware.gpu if name == "gpu" else report.hardware.cpu
        products = [f"{speed.flops / 1e9:.0f} {of}" for of, speed in unit.speeds.items() if speed.flops]
        memory = "-" if unit.memory is None else format_size(unit.memory)
        free = format_size(report.free[name]) if name in report.free else "-"
        threads = str(report.threads[name] or "-")
        delay = micro(unit.overhead)
        rows.append([name, threads, f"{unit.contention:.2f}", delay, ", ".join(products), memory, free])
    return table(header, rows)


def flash_lines(machine: Hardware) -> list[str]:
    """GB/s of random reads: a row for each size of blocks, a column for each number of them under way."""
    depths = sorted({speed.depth for speed in machine.flash})
    found = {(speed.block, speed.depth): giga(speed.bandwidth) for speed in machine.flash}
    header = ["drive, GB/s", *(f"{depth} at once" for depth in depths)]
    blocks = sorted({speed.block for speed in machine.flash})
    return table(header, [[format_size(b), *(found.get((b, depth), "") for depth in depths)] for b in blocks])


def shipped_lines(machines: list[Hardware]) -> list[str]:
    """Figures of machines that are not here, and where they come from."""
    header = ["predicted, GB/s", "GPU", "CPU", "link", "hand-over", "VRAM", "RAM", "flash 4 KiB", "1 MiB"]
    rows = []
    for machine in machines:
        memories = [(unit.memory and format_size(unit.memory)) or "-" for unit in (machine.gpu, machine.cpu)]
        flash = [giga(machine.flash_bandwidth(block, 32)) if machine.flash else "-" for block in (4 << 10, 1 << 20)]
        figures = [giga(b) for b in (machine.gpu.bandwidth, machine.cpu.bandwidth, machine.link_bandwidth)]
        rows.append([machine.name, *figures, micro(machine.hand_over), *memories, *flash])
    notes = [f"{machine.name}: {machine.description}" for machine in machines]
    return [*table(header, rows), "", "None of these was measured here; `hybrid hardware` measures.", "", *notes]


def giga(bandwidth: float) -> str:
    """Bytes per second in GB/s, to three digits or so."""
    value = bandwidth / 1e9
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def micro(seconds: float) -> str:
    """Seconds in µs, to two digits or so."""
    value = seconds * 1e6
    return f"{value:.0f} µs" if value >= 10 else f"{value:.1f} µs"
