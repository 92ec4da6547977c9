"""The figures of a machine that placement needs, bandwidths and fixed delays: shipped, measured, or from a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError, digest_json, read_json, write_json

HARDWARE_VERSION = 1
SHIPPED = Path(__file__).parent / "machines"
MEND = "hybrid plan DIR --vram SIZE --hardware FILE, with FILE a copy of one that is shipped"
# Beyond any memory there is, and wide enough that no quotient of bytes and bandwidth overflows.
BANDWIDTHS = (1e6, 1e15)
LONGEST_DELAY = 10.0


@dataclass(frozen=True)
class ComputeUnit:
    """A device with its own memory.

    bandwidth: bytes per second that its operators read from that memory, while the other unit reads its own.
    overhead: seconds that starting and ending one operator of a layer costs, whatever its size.
    """

    bandwidth: float
    overhead: float

    def __post_init__(self) -> None:
        _check_bandwidth("bandwidth", self.bandwidth)
        _check_delay("overhead", self.overhead)


@dataclass(frozen=True)
class Hardware:
    """Two compute units and what joins them.

    link_bandwidth: bytes per second between the two memories.
    hand_over: seconds to give the other unit a token's hidden state and to have its partial sum back (H).
    sync: seconds that a layer's result costs to be made one when both units computed it (T_sync of PowerInfer, §6.3).
    measured: the figures were measured on the machine they describe; else they are nominal or from data sheets.
    A `gpu` no faster than the `cpu` is legal: no neuron is then worth moving, and placement says so.
    """

    name: str
    description: str
    gpu: ComputeUnit
    cpu: ComputeUnit
    link_bandwidth: float
    hand_over: float
    sync: float
    measured: bool

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 200:
            raise UserError(f"hardware: name should be a short text, not {self.name!r}")
        if not isinstance(self.description, str):
            raise UserError("hardware: description should be a text")
        for unit in (self.gpu, self.cpu):
            if not isinstance(unit, ComputeUnit):
                raise UserError("hardware: gpu and cpu should each hold a bandwidth and an overhead")
        _check_bandwidth("link_bandwidth", self.link_bandwidth)
        _check_delay("hand_over", self.hand_over)
        _check_delay("sync", self.sync)
        if not isinstance(self.measured, bool):
            raise UserError(f"hardware: measured should be true or false, not {self.measured!r}")

    @property
    def digest(self) -> str:
        """Hex sha256 of the figures: the same for equal figures, whatever the name and the description."""
        units = [float(figure) for unit in (self.gpu, self.cpu) for figure in (unit.bandwidth, unit.overhead)]
        return digest_json([*units, float(self.link_bandwidth), float(self.hand_over), float(self.sync)])


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
    body = read_json(path, "hardware", HARDWARE_VERSION, MEND, limit=1 << 20)
    figures = {k: v for k, v in body.items() if k not in ("kind", "format_version")}
    try:
        gpu, cpu = (ComputeUnit(**figures.pop(name)) for name in ("gpu", "cpu"))
        return Hardware(gpu=gpu, cpu=cpu, **figures)
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing") from error
    except TypeError as error:
        raise UserError(f"{path} does not hold the figures of a machine: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_bandwidth(name: str, value: Any) -> None:
    lowest, highest = BANDWIDTHS
    if not _is_number(value) or not lowest <= value <= highest:
        raise UserError(f"hardware: {name} should be {lowest:.0e} to {highest:.0e} bytes per second, not {value!r:.40}")


def _check_delay(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value <= LONGEST_DELAY:
        raise UserError(f"hardware: {name} should be 0 to {LONGEST_DELAY:.0f} seconds, not {value!r:.40}")
