"""The figures of a machine that placement needs, bandwidths and fixed delays: shipped, measured, or from a file.

`speeds` holds what the figures consist of; `hybrid hardware` measures them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError, digest_json, from_json, read_json, write_json
from profiler.speeds import (
    ComputeUnit,
    FlashSpeed,
    Reading,
    Speed,
    check_bandwidth,
    check_bytes,
    check_delay,
    interpolate,
)

HARDWARE_VERSION = 3
OLDER_VERSIONS = (2,)  # which does not say what a process takes of the GPU
NOMINAL_CONTEXT = 768 << 20  # bytes of a GPU that a process takes, where that was not measured: of a large one
SHIPPED = Path(__file__).parent / "machines"
MEND = "hybrid hardware --output FILE, or copy one that is shipped (profiler/machines)"


@dataclass(frozen=True)
class Hardware:
    """Two compute units, what joins them, and the drive that the model lies on.

    link_bandwidth: bytes per second from host memory to the GPU's; back_bandwidth: the other way.
    hand_over: seconds to give the other unit a token's hidden state and to have its partial sum back (H).
    sync: seconds that a layer's result costs to be made one when both units computed it (T_sync of PowerInfer, §6.3).
    measured: the figures were measured on the machine they describe; else they are nominal or from data sheets.
    flash: speeds of the drive; none where they are not known, and then no plan may leave rows there.
    readings: what was measured to derive the units' figures, for people to look at.
    context_bytes: of GPU memory that a process takes beside what is placed there: the CUDA context, libraries, kernels,
    and what an allocator rounds up; None where that was not measured: see `context`.
    A `gpu` no faster than the `cpu` is legal: no neuron is then worth moving, and placement says so.
    """

    name: str
    description: str
    gpu: ComputeUnit
    cpu: ComputeUnit
    link_bandwidth: float
    back_bandwidth: float
    hand_over: float
    sync: float
    measured: bool
    flash: tuple[FlashSpeed, ...] = ()
    readings: tuple[Reading, ...] = ()
    context_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 200:
            raise UserError(f"hardware: name should be a short text, not {self.name!r}")
        if not isinstance(self.description, str):
            raise UserError("hardware: description should be a text")
        for unit in (self.gpu, self.cpu):
            if not isinstance(unit, ComputeUnit):
                raise UserError("hardware: gpu and cpu should each hold a bandwidth and an overhead")
        check_bandwidth("link_bandwidth", self.link_bandwidth)
        check_bandwidth("back_bandwidth", self.back_bandwidth)
        check_delay("hand_over", self.hand_over)
        check_delay("sync", self.sync)
        if not isinstance(self.measured, bool):
            raise UserError(f"hardware: measured should be true or false, not {self.measured!r}")
        if not all(isinstance(speed, FlashSpeed) for speed in self.flash):
            raise UserError("hardware: flash should be a list of speeds: block, depth, bandwidth")
        if self.context_bytes is not None:
            check_bytes("context_bytes", self.context_bytes, least=0)
        if 1 / self.gpu.contention + 1 / self.cpu.contention < 1 - 1e-9:
            raise UserError(
                f"hardware: contentions of {self.gpu.contention:g} and {self.cpu.contention:g} say that both units "
                "together do less than one after the other: 1/gpu + 1/cpu should be at least 1"
            )

    @property
    def digest(self) -> str:
        """Hex sha256 of the figures: the same for equal figures, whatever the name and the description."""
        figures = [float(figure) for figure in (self.link_bandwidth, self.back_bandwidth, self.hand_over, self.sync)]
        flash = [[speed.block, speed.depth, float(speed.bandwidth)] for speed in self.flash]
        context = [] if self.context_bytes is None else [self.context_bytes]
        return digest_json([self.gpu.figures, self.cpu.figures, figures, flash, *context])

    @property
    def context(self) -> int:
        """Bytes that a process takes of the GPU whatever is placed there: measured; else nominal, for a GPU with memory
        of its own, and nothing for other memory that stands for one.
        """
        if self.context_bytes is not None:
            return self.context_bytes
        return 0 if self.gpu.memory is None else NOMINAL_CONTEXT

    def flash_bandwidth(self, block: int, depth: int) -> float:
        """Bytes per second of reads of `block` bytes, `depth` at once, from the nearest figures that are no better.

        Of the depths measured the greatest that is not above `depth` counts (or the least there is); between two sizes
        of blocks the bandwidth grows with the logarithm of the size, and beyond the last it stays.

        Raises:
            UserError: no speed of the drive is known.
        """
        if not self.flash:
            raise UserError(
                f"no time can be predicted for rows on flash: {self.name} has no figures of a drive; measure this "
                "machine's with: hybrid hardware"
            )
        depths = sorted({speed.depth for speed in self.flash})
        chosen = max((d for d in depths if d <= depth), default=depths[0])
        known = sorted((s.block, s.bandwidth) for s in self.flash if s.depth == chosen)
        return interpolate(known, block)

    def joined_seconds(self, gpu: float, cpu: float) -> float:
        """Seconds until both units are done with work that alone takes them `gpu` and `cpu` seconds, begun together.

        Each is slowed by its contention while the other works. If G = gpu·c_g ≤ cpu·c_c, the GPU ends first, at G, and
        the CPU, with cpu - G/c_c left to do alone, at cpu + G (1 - 1/c_c); likewise the other way. The greater of both
        expressions is the end, as the units together are never slower than in turns; both are linear, as a program of
        whole numbers needs.
        """
        return max(cpu + gpu * self.gpu_share, gpu + cpu * self.cpu_share)

    @property
    def gpu_share(self) -> float:
        """Seconds that the CPU's work grows by for each second of the GPU's beside it: c_g (1 - 1/c_c)."""
        return self.gpu.contention * (1 - 1 / self.cpu.contention)

    @property
    def cpu_share(self) -> float:
        """Seconds that the GPU's work grows by for each second of the CPU's beside it: c_c (1 - 1/c_g)."""
        return self.cpu.contention * (1 - 1 / self.gpu.contention)


def shipped_hardware() -> tuple[str, ...]:
    """Names that `read_hardware` knows without a file."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def read_hardware(name_or_path: str | Path) -> Hardware:
    """Hardware by a shipped name, or from a JSON file (what contains a slash or ends in `.json` is a path).

    Raises:
        UserError: no such name, or a file that is missing, damaged or out of range.
    """
    text = str(name_or_path)
    if text in shipped_hardware():
        return _from_file(SHIPPED / f"{text}.json")
    if "/" in text or text.endswith(".json") or isinstance(name_or_path, Path):
        return _from_file(Path(text))
    raise UserError(f"no hardware is named {text!r}; known are {', '.join(shipped_hardware())}, or give a JSON file")


def write_hardware(path: Path, hardware: Hardware) -> None:
    """Write the figures where `read_hardware` finds them, atomically."""
    write_json(path, "hardware", HARDWARE_VERSION, asdict(hardware))


def _from_file(path: Path) -> Hardware:
    body = read_json(path, "hardware", HARDWARE_VERSION, MEND, limit=1 << 20, older=OLDER_VERSIONS)
    figures: dict[str, Any] = {k: v for k, v in body.items() if k not in ("kind", "format_version")}
    try:
        for name in ("gpu", "cpu"):
            figures[name] = _unit(figures.get(name))
        figures["flash"] = tuple(from_json(FlashSpeed, speed, "hardware") for speed in _listed(figures, "flash"))
        figures["readings"] = tuple(from_json(Reading, one, "hardware") for one in _listed(figures, "readings"))
        return Hardware(**figures)
    except TypeError as error:
        raise UserError(f"{path} does not hold the figures of a machine: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _unit(value: Any) -> ComputeUnit:
    if not isinstance(value, dict) or not isinstance(value.get("speeds", {}), dict):
        raise UserError("hardware: gpu and cpu should each hold a bandwidth and an overhead")
    speeds = {name: from_json(Speed, speed, "hardware") for name, speed in value.get("speeds", {}).items()}
    return ComputeUnit(**{**value, "speeds": speeds})


def _listed(figures: dict[str, Any], name: str) -> Iterator[Any]:
    listed = figures.get(name, [])
    if not isinstance(listed, list) or len(listed) > 10_000:
        raise UserError(f"hardware: {name} should be a list")
    return iter(listed)
