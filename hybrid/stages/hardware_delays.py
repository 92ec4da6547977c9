"""What does not grow with weights: starting an operator, handing rows to the other unit. And the link between them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch

from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_step import HEAD_DIM, StepModel, StepShape
from hybrid.stages.hardware_weights import complete
from profiler.timing import Call, Case, intercept, time_cases

ROUNDS, SHORT_ROUNDS = 8, 40
LINK_BYTES = (64 << 20, 512 << 20)  # copied at least, and at most
SMALL = 128  # width of a model of which one thread has next to nothing to read; its projections are shared by two
FEW_ROWS = 4  # with next to no work
MANY_LAYERS, FEW_LAYERS = 16, 4  # of steps that take little, and of steps that take a while
# Seconds of attention between hand-overs: so short that threads that wait keep watching for work (`native/watch.hpp`);
# and so long that they fall asleep.
SHORT, LONG = 1e-4, 1e-3


@dataclass(frozen=True)
class Measurement:
    """Seconds, and what lies between the quartiles of the rounds."""

    seconds: float
    apart: float


@dataclass(frozen=True)
class Link:
    """Bytes per second from the host's memory to the other unit's, and back."""

    there: float
    back: float
    spread: float


def measure_link(other: Unit, least: int, seconds: float) -> Link:
    """Time copies of `least` bytes or so between the host's memory, pinned for a GPU, and another unit's."""
    size = min(max(LINK_BYTES[0], least), LINK_BYTES[1])
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
    cases = {shape: Case(StepModel(unit, shape).step()) for shape in shapes}
    timings = time_cases(cases, seconds / len(cases), ROUNDS)
    times = [timings[shape].seconds / shape.operators for shape in shapes]
    return intercept([float(shape.nbytes) for shape in shapes], times)


def measure_hand_over(
    near: Unit, far: Unit, hidden: int, neurons: int, speed: float, between: float, seconds: float
) -> Measurement:
    """Seconds that a layer takes more because rows are computed on the other unit too.

    Two steps of a model take turns, whose layers are attention and next to no rows; in one of them as many rows again
    are computed on the far unit, in the same time. The steps' turns are short, so that both meet the same machine.

    Args:
        near: the unit of the attention.
        far: the other one.
        hidden: width of the state that is handed over.
        neurons: of a layer, each of which a bit of what is handed over says whether it is named.
        speed: bytes per second that the near unit's projections read.
        between: seconds of attention, about, from one hand-over to the next.
        seconds: of measuring.
    """
    wanted = between * speed / (4 * 2 * hidden)  # rows of four projections in 16 bits
    attended = max(HEAD_DIM, min(hidden, round(wanted)) // HEAD_DIM * HEAD_DIM)
    shape = StepShape(FEW_LAYERS, hidden, attended, FEW_ROWS, neurons)
    lane, model = ThreadLane(), StepModel(near, shape)
    try:
        cases = {"whole": Case(model.step()), "split": Case(model.step(far, lane))}
        timings = time_cases(cases, seconds / 2, SHORT_ROUNDS)
    finally:
        lane.close()
    more = [difference / shape.layers for difference in timings["split"].beyond(timings["whole"])]
    low, middle, high = statistics.quantiles(more, n=4, method="inclusive")
    return Measurement(max(0.0, middle), high - low)
