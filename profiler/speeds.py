"""What a machine's figures consist of: speeds of a compute unit by weight format, of a drive by block and depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from profiler.artifacts import UserError

# From a hard disk's scattered reads to beyond any memory there is; no quotient of bytes and bandwidth overflows.
BANDWIDTHS = (1e4, 1e15)
FLOPS = (1e3, 1e18)
LONGEST_DELAY = 10.0
MOST_CONTENTION = 100.0
MOST_BYTES = 1 << 60
MOST_SPREAD = 1e6
Access = Literal["dense", "rows", "passed"]


@dataclass(frozen=True)
class Speed:
    """Bytes of weights per second that a unit's operators read in one format.

    dense: rows one after the other, as projections and the head do. rows: a tenth of the rows, here and there, as the
    sparse FFN does for what a predictor names. flops: as the unit's, in this format; None where only that is known.
    passed: all rows of a bank, as the sparse FFN does in modes dense and exact; None where that is not known.
    """

    dense: float
    rows: float
    flops: float | None = None
    passed: float | None = None

    def __post_init__(self) -> None:
        check_bandwidth("dense", self.dense)
        check_bandwidth("rows", self.rows)
        if self.passed is not None:
            check_bandwidth("passed", self.passed)
        check_flops(self.flops)


@dataclass(frozen=True)
class ComputeUnit:
    """A device with its own memory.

    bandwidth: bytes per second that its operators read from that memory, in formats that `speeds` does not name.
    overhead: seconds that starting and ending one operator of a layer costs, whatever its size.
    contention: how many times longer its work takes while the other unit works too; 1 where they share nothing.
    flops: floating-point operations per second of its products with many tokens, in formats that `speeds` has none
        for; None where memory is the only limit.
    memory: bytes it has in all, for plans without a budget of their own; None where that is not known.
    """

    bandwidth: float
    overhead: float
    contention: float = 1.0
    flops: float | None = None
    memory: int | None = None
    speeds: Mapping[str, Speed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bandwidth("bandwidth", self.bandwidth)
        check_delay("overhead", self.overhead)
        if not is_number(self.contention) or not 1 <= self.contention <= MOST_CONTENTION:
            raise UserError(f"hardware: contention should be 1 to {MOST_CONTENTION:g}, not {self.contention!r:.40}")
        check_flops(self.flops)
        if self.memory is not None:
            check_bytes("memory", self.memory)
        if not all(isinstance(name, str) and isinstance(speed, Speed) for name, speed in self.speeds.items()):
            raise UserError("hardware: speeds should give dense and rows for each weight format")

    def speed(self, weight_format: str) -> Speed:
        """How fast weights of a format are read."""
        return self.speeds.get(weight_format) or Speed(self.bandwidth, self.bandwidth)

    def products(self, weight_format: str) -> float | None:
        """Floating-point operations per second of products with many tokens; None where memory is the only limit."""
        return self.speed(weight_format).flops or self.flops

    @property
    def figures(self) -> list[Any]:
        """All that times depend on, as JSON."""
        speeds = [
            [name, *map(_as_float, (speed.dense, speed.rows, speed.flops, speed.passed))]
            for name, speed in sorted(self.speeds.items())
        ]
        return [*map(_as_float, (self.bandwidth, self.overhead, self.contention, self.flops)), speeds]


@dataclass(frozen=True)
class FlashSpeed:
    """Bytes per second of random reads of `block` bytes with `depth` of them under way."""

    block: int
    depth: int
    bandwidth: float

    def __post_init__(self) -> None:
        check_bytes("block", self.block)
        check_bytes("depth", self.depth)
        check_bandwidth("bandwidth", self.bandwidth)


@dataclass(frozen=True)
class Reading:
    """One measurement: what a unit's operators read per second.

    beside: while the other unit worked too. threads: of the unit, 0 where that means nothing. spread: what lies between
    the quartiles of its rounds, as a share of their median.
    """

    unit: str
    weight_format: str
    access: Access
    threads: int
    beside: bool
    bandwidth: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        known = " or ".join(get_args(Access))
        if self.unit not in ("gpu", "cpu") or self.access not in get_args(Access):
            raise UserError(f"hardware: a reading is of gpu or cpu, {known}, not {self.unit!r}, {self.access!r}")
        if not isinstance(self.weight_format, str) or not isinstance(self.beside, bool):
            raise UserError("hardware: a reading names a weight format, and says whether the other unit worked too")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or not 0 <= self.threads <= 1 << 16:
            raise UserError(f"hardware: threads should be a whole number, not {self.threads!r:.40}")
        check_bandwidth("bandwidth", self.bandwidth)
        if not is_number(self.spread) or not 0 <= self.spread <= MOST_SPREAD:
            raise UserError(f"hardware: spread should be 0 to {MOST_SPREAD:g}, not {self.spread!r:.40}")


def _as_float(figure: float | None) -> float | None:
    return None if figure is None else float(figure)


def interpolate(known: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at` of a curve of points by rising place, straight over the logarithm, level beyond its ends."""
    if at <= known[0][0]:
        return known[0][1]
    for (left, low), (right, high) in pairwise(known):
        if at <= right:
            return low + (high - low) * math.log(at / left) / math.log(right / left)
    return known[-1][1]


def is_number(value: Any) -> bool:
    """Whether the value is a number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_bandwidth(name: str, value: Any) -> None:
    """Refuse what is no bandwidth in bytes per second."""
    lowest, highest = BANDWIDTHS
    if not is_number(value) or not lowest <= value <= highest:
        raise UserError(f"hardware: {name} should be {lowest:.0e} to {highest:.0e} bytes per second, not {value!r:.40}")


def check_flops(value: Any) -> None:
    """Refuse what is no number of operations per second; None is left open."""
    if value is not None and (not is_number(value) or not FLOPS[0] <= value <= FLOPS[1]):
        raise UserError(f"hardware: flops should be {FLOPS[0]:.0e} to {FLOPS[1]:.0e}, not {value!r:.40}")


def check_delay(name: str, value: Any) -> None:
    """Refuse what is no delay in seconds."""
    if not is_number(value) or not 0 <= value <= LONGEST_DELAY:
        raise UserError(f"hardware: {name} should be 0 to {LONGEST_DELAY:.0f} seconds, not {value!r:.40}")


def check_bytes(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_BYTES:
        raise UserError(f"hardware: {name} should be a whole number from {least} to {MOST_BYTES}, not {value!r:.40}")
