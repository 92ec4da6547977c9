"""What a layer on two units costs beside its work: a hand-over, timed in a step as the engine runs it."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Callable, Sequence

import torch

from hybrid.model.decoder import Projection
from hybrid.ops import cpu
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.lane import Lane, ThreadLane
from hybrid.runtime.recorded import Recorder
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec
from hybrid.stages.hardware_weights import Operators, Shape, complete, few_rows, random_rows
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.timing import Case, spread, time_cases

LAYERS = 4  # of the step
BETWEEN = 1e-3  # seconds of a layer's attention there: long enough for threads that wait to fall asleep
FEW_ROWS = 4  # of a bank with next to no work
ROUNDS = 10


def measure_hand_over(
    near: Unit, far: Unit, weight_format: str, shape: Shape, speed: float, seconds: float
) -> tuple[float, float]:
    """Seconds that a layer takes more because a few of its rows are computed on the other unit; and the spread.

    Two steps of equal layers take turns: attention (projections that take a while), then a feed-forward network with
    next to no rows, whole in one step and on both units in the other. speed: bytes of weights per second that the near
    unit's projections read.
    """
    between = _attention(Operators(near, random_rows(weight_format, shape), weight_format, shape), shape, speed)
    lane = ThreadLane()
    try:
        cases = {name: Case(_step(near, far, lane, between, shape, name == "split")) for name in ("whole", "split")}
        timings = time_cases(cases, seconds / 2, ROUNDS)
    finally:
        lane.close()
    more = timings["split"].beyond(timings["whole"])
    return max(0.0, statistics.median(more)) / LAYERS, spread(more)


def _attention(operators: Operators, shape: Shape, speed: float) -> list[list[Matrix]]:
    """For each layer matrices that take about BETWEEN seconds, others than the layer before."""
    pieces = operators.pieces(max(1, shape.outputs // 8))
    count = max(1, min(len(pieces), round(BETWEEN * speed / pieces[0].nbytes)))
    return [[pieces[(layer * count + i) % len(pieces)] for i in range(count)] for layer in range(LAYERS)]


def _step(
    near: Unit, far: Unit, lane: Lane, between: Sequence[Sequence[Matrix]], shape: Shape, split: bool
) -> Callable[[], None]:
    """A decode step of one token in mode predicted, as the engine runs it: recorded where memory is the host's."""
    named = RowPredictor(
        Predictor.none(shape.hidden, shape.neurons),
        torch.arange(shape.neurons, dtype=torch.int32, device=near.device),
        near.linear,
    )
    first = few_rows(near, shape.hidden, FEW_ROWS)
    second = few_rows(far if split else near, shape.hidden, FEW_ROWS, FEW_ROWS)
    layer = SplitLayer(near, far, [first], [second], named, None)
    if not split:
        layer = SplitLayer(near, None, [first, second], [], named, None)
    scheduler = Scheduler([layer] * LAYERS, "predicted", False, lane)
    if near.pool is None:
        x = torch.ones(1, shape.hidden, device=near.device)

        def eager() -> None:
            for index, matrices in enumerate(between):
                for matrix in matrices:
                    near.linear(x, matrix, None)
                scheduler.feed_forward(index, x, x)
            complete(near)

        return eager
    recorder = Recorder(_spec(shape), scheduler)
    x = recorder.state.fill_(1)
    for index, matrices in enumerate(between):
        for matrix in matrices:
            recorder.project(near, x, [Projection(matrix, None)])
        recorder.feed_forward(index, x, x)
    unused = array("q", (0,))

    def recorded() -> None:
        for piece in recorder.pieces:
            if isinstance(piece, cpu.Program):
                piece.run(1, *[unused.buffer_info()[0]] * 3)
            else:
                piece(1)

    return recorded


def _spec(shape: Shape) -> ModelSpec:
    """Of a model whose layers are so wide; nothing else of it is used."""
    return ModelSpec(
        family="measured",
        vocab_size=1,
        hidden_size=shape.hidden,
        n_layers=LAYERS,
        n_neurons=shape.neurons,
        n_heads=1,
        n_kv_heads=1,
        head_dim=1,
        max_positions=1,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=0.0,
        positions="learned",
    )
