"""The operators of a decode step over the layers that lie on the GPU, in rotation: bytes per second beside a copy's.

With device operators all layers are one CUDA graph, so that each call finds none of its weights in a cache and nothing
waits to be launched. A stand-in's are the native ones, called one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from hybrid.model.decoder import LayerParts
from hybrid.model.kv_cache import LayerPages
from hybrid.model.pages import PAGE_TOKENS
from hybrid.ops import cuda
from hybrid.ops.bank import RowBank
from hybrid.ops.captured import Captured
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.engine import Engine
from hybrid.runtime.scheduler import SplitLayer
from hybrid.runtime.unit import Unit
from hybrid.stages.hardware_device import DeviceCalls
from profiler.matrix import Matrix
from profiler.predictor import PredictorSet

ACTIVE = (1.0, 0.1, 0.03)
CONTEXTS = (512, 4096)
SECONDS = 1.0  # of timing each
COPY_BYTES = 2 << 30
Call = Callable[[], object]


@dataclass(frozen=True)
class Reading:
    """One operator over `layers` layers.

    bytes: that it has to read in all of them; seconds: of all of them. share_of_copy: of the bandwidth of a copy within
    the GPU's memory, read and written bytes counted. reason: why it was not measured, and then there are no figures.
    """

    operator: str
    layers: int
    bytes: int | None = None
    seconds: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    reason: str | None = None


def measure(engine: Engine, predictors: PredictorSet | None) -> Iterator[dict[str, object]]:
    """The bandwidth of a copy, then a row for each operator.

    The engine's plan has whole layers on the GPU, the first ones: these are measured.
    """
    unit = engine.machine.units["gpu"]
    layers = [split for split in engine.machine.scheduler.layers if split.near is unit and not split.far_banks]
    attentions = engine.decoder.layers[: len(layers)]
    bandwidth = copy_bandwidth(unit)
    yield {"operator": "copy", "gigabytes_per_second": bandwidth / 1e9, "of": "bytes read and bytes written"}
    operators = make_operators(unit)
    cases = [dense(operators, attentions), *rows(operators, layers), *contexts(operators, engine, attentions)]
    cases.append(naming(operators, predictors, engine, len(layers)))
    for name, size, calls in cases:
        yield asdict(_reading(name, len(layers), size, calls, unit.device, bandwidth))


Case = tuple[str, int, "Sequence[Call] | str"]  # calls, or why there are none


def copy_bandwidth(unit: Unit) -> float:
    """Bytes per second of a copy within the unit's memory, those read and those written counted."""
    size = COPY_BYTES if unit.device.type == "cuda" else COPY_BYTES // 8
    source = torch.ones(size, dtype=torch.uint8, device=unit.device)
    target = torch.empty_like(source)
    return 2 * size / Captured([lambda: target.copy_(source)], unit.device).seconds(SECONDS)


class UnitOperators:
    """A unit's own operators, called as `DeviceCalls` are: a stand-in's, or torch's on a GPU without Triton."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def linear(self, x: torch.Tensor, matrices: Sequence[Matrix]) -> Call:
        """See `DeviceCalls`."""
        return lambda: [self._unit.linear(x, matrix, None) for matrix in matrices]

    def ffn(self, bank: RowBank, x: torch.Tensor, named: torch.Tensor | None) -> Call:
        """See `DeviceCalls`."""
        return lambda: self._unit.sparse_ffn(bank, x, named, False)

    def attend(self, heads: int, pages: LayerPages, context: int) -> str:
        """See `DeviceCalls`."""
        return "these operators compute attention only as part of a step"

    def predict(self, predictor: RowPredictor, x: torch.Tensor) -> Call:
        """See `DeviceCalls`."""
        return lambda: predictor.named(x)


Operators = DeviceCalls | UnitOperators


def make_operators(unit: Unit) -> Operators:
    """Device operators where they serve the unit, else its own."""
    if unit.pool is None and cuda.available(unit.device):
        return DeviceCalls(unit.device)
    return UnitOperators(unit)


def dense(operators: Operators, layers: Sequence[LayerParts]) -> Case:
    """The projections of attention."""
    size, calls = 0, list[Call]()
    for layer in layers:
        states, wide = (_state(m.weight) for m in (layer.q, layer.o))
        calls += [
            operators.linear(states, [layer.q.weight, layer.k.weight, layer.v.weight]),
            operators.linear(wide, [layer.o.weight]),
        ]
        size += sum(projection.weight.nbytes for projection in (layer.q, layer.k, layer.v, layer.o))
    return "projections of attention", size, calls


def rows(operators: Operators, layers: Sequence[SplitLayer]) -> Iterator[Case]:
    """The feed-forward with shares of its rows named, here and there; a case for each share."""
    generator = torch.Generator().manual_seed(0)
    for share in ACTIVE:
        size, calls = 0, list[Call]()
        for layer in layers:
            (bank,) = layer.near_banks
            count = max(1, round(share * len(bank)))
            named = None
            if share < 1:
                named = torch.zeros(1, len(bank), dtype=torch.bool)
                named[0, torch.randperm(len(bank), generator=generator)[:count]] = True
                named = named.to(bank.device)
            x = torch.randn(1, bank.hidden, generator=generator).to(bank.device)
            calls.append(operators.ffn(bank, x, named))
            size += count * bank.bytes // len(bank)
        yield f"feed-forward, {share:.0%} of the rows", size, calls


def contexts(operators: Operators, engine: Engine, layers: Sequence[LayerParts]) -> Iterator[Case]:
    """Attention over texts, as long as the engine has room for."""
    spec = engine.directory.spec
    for context in CONTEXTS:
        name = f"attention over {context:,} tokens"
        if context > engine.context:
            yield name, 0, f"the model was trained for {engine.context} tokens"
            continue
        calls = [operators.attend(spec.n_heads, layer.pages, context) for layer in layers]
        refused = next((call for call in calls if isinstance(call, str)), None)
        element = layers[0].pages.keys.element_size()
        size = len(layers) * -(-context // PAGE_TOKENS) * PAGE_TOKENS * 2 * spec.kv_size * element
        yield name, size, refused or [call for call in calls if not isinstance(call, str)]


def naming(operators: Operators, predictors: PredictorSet | None, engine: Engine, layers: int) -> Case:
    """Predictors of the layers, by neuron id."""
    name, unit = "predictors", engine.machine.units["gpu"]
    if predictors is None:
        return name, 0, "the model has none"
    ids = torch.arange(engine.directory.spec.n_neurons, dtype=torch.int32, device=unit.device)
    moved = [p.moved(lambda m: m.to(unit.device), lambda b: b.to(unit.device)) for p in predictors.layers[:layers]]
    x = torch.randn(1, engine.directory.spec.hidden_size).to(unit.device)
    calls = [operators.predict(RowPredictor(predictor, ids, unit.linear), x) for predictor in moved]
    return name, sum(predictor.nbytes for predictor in moved), calls


def _state(weight: Matrix) -> torch.Tensor:
    return torch.randn(1, weight.columns, device=weight.data.device)


@torch.inference_mode()
def _reading(
    name: str, layers: int, size: int, calls: Sequence[Call] | str, device: torch.device, bandwidth: float
) -> Reading:
    if isinstance(calls, str) or not calls:
        return Reading(name, layers, reason=calls if isinstance(calls, str) else "no layer is on the GPU")
    seconds = Captured(calls, device).seconds(SECONDS)
    return Reading(name, layers, size, seconds, size / seconds / 1e9, size / seconds / bandwidth)
