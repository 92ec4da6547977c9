"""What does not grow with weights: starting an operator, handing rows to the other unit. And the link between them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch

from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_step import HEAD_DIM, StepShape, make_step
from hybrid.stages.hardware_weights import complete
from profiler.timing import Call, Case, intercept, spread, time_cases

ROUNDS = 8
LINK_BYTES = 64 << 20
SMALL = 128  # width of a model of which one thread has next to nothing to read; its projections are shared by two
FEW_ROWS = 8  # with next to no work, on two units
MANY_LAYERS, FEW_LAYERS = 16, 4  # of steps that take little, and of steps that take a while
BETWEEN = 1e-3  # seconds of attention between hand-overs, so long that threads that wait fall asleep


@dataclass(frozen=True)
class Measurement:
    """A figure, and what lies between the quartiles of its rounds as a share of it."""

    value: float
    spread: float


@dataclass(frozen=True)
class Link:
    """Bytes per second from the host's memory to the other unit's, and back."""

    there: float
    back: float
    spread: float


def measure_link(other: Unit, least: int, seconds: float) -> Link:
    """Time copies of at least `least` bytes between the host's memory, pinned for a GPU, and another unit's."""
    size = max(LINK_BYTES, least)
    on_gpu = other.device.type == "cuda"
    host = torch.ones(size, dtype=torch.uint8, pin_memory=on_gpu)  # zeros that nobody wrote take no memory
    far = torch.ones(size, dtype=torch.uint8, device=other.device)

    def copy(to: torch.Tensor, source: torch.Tensor) -> Call:
        def call() -> None:
            to.copy_(source, non_blocking=on_gpu)
            complete(other)

        return call

    timings = time_cases({"there": Case(copy(far, host)), "back": Case(copy(host, far))}, seconds / 2, ROUNDS)
    there, back = timings["there"], timings["back"]
    return Link(size / there.seconds, size / back.seconds, max(there.spread, back.spread))


def measure_overhead(unit: Unit, threads: int, seconds: float) -> float:
    """Seconds that an operator of a decode step costs whatever its size, on average over those of a layer.

    What is left at no weights of the times of small models, of whose projections all threads have a part.
    """
    base = SMALL * math.ceil(max(1, threads) ** 0.5)
    shapes = [
        StepShape(MANY_LAYERS, width, width, rows := FEW_ROWS * max(1, threads), rows)
        for width in (base, base * 3 // 2, base * 2)
    ]
    cases = {shape: Case(make_step(unit, shape)) for shape in shapes}
    timings = time_cases(cases, seconds / len(cases), ROUNDS)
    times = [timings[shape].seconds / shape.operators for shape in shapes]
    return intercept([float(shape.nbytes) for shape in shapes], times)


def measure_hand_over(near: Unit, far: Unit, hidden: int, neurons: int, speed: float, seconds: float) -> Measurement:
    """Seconds that a layer takes more because some of its rows are computed on the other unit.

    Steps of two equal models take turns, whose layers are attention that takes a while and next to no rows: beside the
    attention in one model, half of them on the far unit in the other.

    speed: bytes per second that the near unit's projections read.
    """
    wanted = BETWEEN * speed / (4 * 2 * hidden)  # rows of four projections in 16 bits
    attended = max(HEAD_DIM, min(hidden, round(wanted)) // HEAD_DIM * HEAD_DIM)
    shape = StepShape(FEW_LAYERS, hidden, attended, FEW_ROWS, neurons)
    lane = ThreadLane()
    try:
        cases = {"whole": Case(make_step(near, shape)), "split": Case(make_step(near, shape, far, lane))}
        timings = time_cases(cases, seconds / 2, ROUNDS)
    finally:
        lane.close()
    more = timings["split"].beyond(timings["whole"])
    return Measurement(max(0.0, statistics.median(more)) / shape.layers, spread(more))
