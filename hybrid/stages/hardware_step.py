"""A decode step of random weights, run as the engine runs its own: recorded, or one by one where torch computes it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch

from hybrid.model.decoder import Decoder, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.eager import EagerOperators, Step
from hybrid.model.kv_cache import LayerPages, Span
from hybrid.model.pages import PAGE_TOKENS
from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.activity import Activity
from hybrid.runtime.lane import Lane
from hybrid.runtime.recording import record
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.timing import StepTimes
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec
from hybrid.stages.hardware_weights import VECTORS, complete
from placement.latency import ATTENTION_OPERATORS, HEAD_OPERATORS, ROWS_OPERATORS
from profiler.matrix import Matrix
from profiler.predictor import Predictor
from profiler.timing import Call

HEAD_DIM = 32
VOCABULARY = 16
PURPOSE = "steps"


@dataclass(frozen=True)
class StepShape:
    """A model of equal layers in f16. attended: width of its queries, keys and values, whole heads; rows: that are
    computed on one unit; neurons: that a layer's bitmap speaks of, those and more.
    """

    layers: int
    hidden: int
    attended: int
    rows: int
    neurons: int

    @property
    def nbytes(self) -> int:
        """Bytes of weights that the layers of a step read."""
        return self.layers * 2 * self.hidden * (4 * self.attended + VECTORS * self.rows)

    @property
    def operators(self) -> int:
        """Operators of a step, as placement counts them."""
        return self.layers * (ATTENTION_OPERATORS + ROWS_OPERATORS) + HEAD_OPERATORS

    @property
    def spec(self) -> ModelSpec:
        """What the decoder is built from."""
        return ModelSpec(
            family="measured",
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            n_layers=self.layers,
            n_neurons=self.neurons,
            n_heads=self.attended // HEAD_DIM,
            n_kv_heads=self.attended // HEAD_DIM,
            head_dim=HEAD_DIM,
            max_positions=PAGE_TOKENS,
            activation="silu",
            gated=True,
            norm="rms",
            norm_eps=1e-5,
            positions="rope",
        )


class StepModel:
    """A model on a unit. All of its layers have the same weights, so that times differ by nothing but what is asked."""

    def __init__(self, near: Unit, shape: StepShape) -> None:
        self.near, self.shape = near, shape
        self.decoder = Decoder(shape.spec, _outer(near, shape), [_layer(near, shape)] * shape.layers)
        ids = torch.arange(shape.neurons, dtype=torch.int32, device=near.device)
        self._named = RowPredictor(Predictor.none(shape.hidden, shape.neurons), ids, near.linear)

    def step(self, far: Unit | None = None, lane: Lane | None = None) -> Call:
        """One token's step in mode predicted, where all rows are named; complete when it returns.

        With a far unit, to which the lane leads, as many rows again are computed there at the same time.
        """
        near, shape = self.near, self.shape
        first = [_bank(near, shape, 0, shape.rows)]
        rest = [_bank(far, shape, shape.rows, shape.rows)] if far else []
        layer = SplitLayer(near, far, first, rest, self._named, None)
        scheduler = Scheduler([layer] * shape.layers, "predicted", False, lane)
        decoder, recorded = self.decoder, record(self.decoder, scheduler, PAGE_TOKENS)
        step, activity = Step([0], [Span(array("q", [0]), 0, 1)]), Activity()

        @torch.inference_mode()
        def call() -> None:
            if recorded is not None:
                recorded.run(step, activity)
            else:
                scheduler.times = StepTimes()  # of the last call alone
                decoder.forward(EagerOperators(decoder.spec, step, scheduler.feed_forward))
            complete(near)

        return call


def _outer(unit: Unit, shape: StepShape) -> OuterParts:
    embeddings = _matrix(unit, VOCABULARY, shape.hidden)
    return OuterParts(embeddings, None, _norm(unit, shape.hidden), embeddings, unit, unit)


def _layer(unit: Unit, shape: StepShape) -> LayerParts:
    pages = (1, shape.attended // HEAD_DIM, PAGE_TOKENS, HEAD_DIM)
    keys, values = (unit.empty(pages, torch.float16, PURPOSE) for _ in range(2))
    q, k, v = (Projection(_matrix(unit, shape.attended, shape.hidden), None) for _ in range(3))
    o, norm = Projection(_matrix(unit, shape.hidden, shape.attended), None), _norm(unit, shape.hidden)
    return LayerParts(norm, q, k, v, o, None, norm, LayerPages(keys, values), unit)


def _norm(unit: Unit, width: int) -> NormWeights:
    return NormWeights(unit.place(torch.ones(width), PURPOSE), None)


def _matrix(unit: Unit, rows: int, columns: int) -> Matrix:
    return unit.place_matrix(Matrix.of(_random(rows, columns)), PURPOSE)


def _bank(unit: Unit, shape: StepShape, first: int, rows: int) -> RowBank:
    weights = unit.place(_random(rows, VECTORS * shape.hidden), PURPOSE)
    return RowBank(weights, "f16", shape.hidden, True, "silu", first_row=first)


def _random(rows: int, columns: int) -> torch.Tensor:
    """f16 `[rows, columns]`, small enough that states stay so."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    return values.div_(columns**0.5).half()
