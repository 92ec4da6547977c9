"""How fast units read weights, alone and while the other works, and how fast they multiply many tokens."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_device import operators_over
from hybrid.stages.hardware_weights import Shape, random_rows
from profiler.speeds import MOST_CONTENTION, Access, Reading, Speed
from profiler.timing import Case, Timing, time_cases

ACCESSES: tuple[Access, ...] = get_args(Access)
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """A unit to measure. threads: that it computes with, 0 where that means nothing. used: the engine runs it so, and
    its speeds are these; else only readings are taken.
    """

    unit: Unit
    threads: int
    used: bool


@dataclass(frozen=True)
class Reach:
    """One thing that is timed. access: None for many tokens through a projection."""

    measured: Measured
    access: Access | None
    beside: bool


Moved = Mapping[Measured, Mapping[Access | None, int]]  # by unit: bytes of weights by access, operations of many tokens


@dataclass
class UnitFigures:
    """What was measured. speeds: of units by name and format. slowdowns: by name, of all work that was timed beside the
    other unit's.
    """

    speeds: dict[str, dict[str, Speed]] = field(default_factory=dict)
    slowdowns: dict[str, list[float]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    def contention(self) -> dict[str, float]:
        """How many times longer each unit's work takes while the other works: the median of what was timed.

        Two units are never slower together than in turns: 1/a + 1/b is at least 1, and where noise says otherwise both
        are scaled until it is. A unit without another has 1.
        """
        found = {name: max(1.0, statistics.median(self.slowdowns.get(name, [1.0]))) for name in self.speeds}
        together = sum(1 / contention for contention in found.values())
        scale = min(1.0, together) if len(found) == 2 else 1.0
        return {name: min(max(1.0, contention * scale), MOST_CONTENTION) for name, contention in found.items()}


def measure_units(
    units: Sequence[Measured],
    formats: Sequence[str],
    shape: Shape,
    seconds: float,
    tell: Callable[[str, int, int], None],
) -> UnitFigures:
    """Time the operators of units for about `seconds`, format by format, besides what making weights takes.

    units: those that the engine uses have different names; where there are two, each is timed beside the other as well.
    tell: hears what is measured, and how much of it is done.
    """
    figures = UnitFigures()
    for weight_format in formats:
        timings, moved = _timings(units, weight_format, shape, seconds / len(formats), tell)
        _enter(figures, weight_format, timings, moved)
        for measured in units:
            measured.unit.close()  # gives back the bytes of weights that are now gone
    return figures


def _timings(
    units: Sequence[Measured],
    weight_format: str,
    shape: Shape,
    seconds: float,
    tell: Callable[[str, int, int], None],
) -> tuple[Mapping[Reach, Timing], Moved]:
    """Every reach of one format; and what one call moves."""
    rows = random_rows(weight_format, shape)
    operators = {measured: operators_over(measured.unit, rows, weight_format, shape) for measured in units}
    cases: dict[Reach, Case] = {}
    for measured in units:
        others = [other for other in units if measured.used and other.used and other is not measured]
        for access in ACCESSES:
            call = operators[measured].call(access)
            cases[Reach(measured, access, False)] = Case(call)
            for other in others:
                cases[Reach(measured, access, True)] = Case(call, operators[other].call(access))
        if measured.used:
            cases[Reach(measured, None, False)] = Case(operators[measured].call(None))
    timings = time_cases(cases, seconds / len(cases), ROUNDS, tell=partial(tell, weight_format))
    return timings, {measured: of_unit.moved for measured, of_unit in operators.items()}


def _enter(figures: UnitFigures, weight_format: str, timings: Mapping[Reach, Timing], moved: Moved) -> None:
    rates = {reach: moved[reach.measured][reach.access] / timing.seconds for reach, timing in timings.items()}
    for reach, timing in timings.items():
        measured, access = reach.measured, reach.access
        name = measured.unit.name
        if access is not None:
            where = (name, weight_format, access, measured.threads, reach.beside)
            figures.readings.append(Reading(*where, rates[reach], round(timing.spread, 4)))
        elif measured.used:
            alone = {reached: rates[Reach(measured, reached, False)] for reached in ACCESSES}
            figures.speeds.setdefault(name, {})[weight_format] = Speed(**alone, flops=rates[reach])
        if reach.beside:
            alone_timing = timings[Reach(measured, access, False)]
            figures.slowdowns.setdefault(name, []).append(statistics.median(timing.over(alone_timing)))
