"""The papers' engines as plans: where llama.cpp, PowerInfer and its single steps put a model, and read prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from placement.cost import ModelSizes, account
from placement.frequencies import Frequencies
from placement.plan import Budgets, LayerPlan, Mode, Placement, Segment, Unit
from placement.shapes import ModelShape
from placement.simulate import Simulated, Workload, simulate, whole_layers
from profiler.hardware import Hardware

GROUP = 64  # neurons that are placed together (PowerInfer, section 6.3)
STREAMED = 32  # from so many tokens on, llama.cpp copies weights to the GPU rather than compute on the CPU


@dataclass(frozen=True)
class Engine:
    """One engine with one model on one machine.

    streamed: the same model with the weights in host memory copied to the GPU for every step; None where the engine
    never does that.
    """

    sizes: ModelSizes
    frequencies: Frequencies
    placement: Placement
    streamed: tuple[ModelSizes, Placement] | None = None

    def simulate(self, hardware: Hardware, workload: Workload) -> Simulated:
        """A request, predicted."""
        decoding = self._for_step(workload.batch)
        prompts = self._for_step(workload.prompt)
        return simulate(decoding[0], self.frequencies, hardware, decoding[1], workload, for_prompts=prompts)

    def _for_step(self, tokens: int) -> tuple[ModelSizes, Placement]:
        if self.streamed and tokens >= STREAMED:
            return self.streamed
        return self.sizes, self.placement


def llama_cpp(shape: ModelShape, weight_format: str, budgets: Budgets) -> Engine:
    """The first layers whole on the GPU, as many as fit; the others on the CPU, everything computed."""
    sizes = shape.sizes(weight_format, predictors=False, neurons_per_row=GROUP)
    placement = layer_wise(sizes, budgets, "dense")
    streamed = (whole_layers(sizes), _streamed(placement))
    return Engine(sizes, _frequencies(shape), placement, streamed)


def with_predictors(shape: ModelShape, weight_format: str, budgets: Budgets) -> Engine:
    """PowerInfer's first step: predictors and sparse operators, in llama.cpp's layer-wise split."""
    sizes = shape.sizes(weight_format, neurons_per_row=GROUP)
    return Engine(sizes, _frequencies(shape), layer_wise(sizes, budgets, "predicted"))


def with_engine(shape: ModelShape, weight_format: str, budgets: Budgets) -> Engine:
    """PowerInfer's second step: both units work on each layer's neurons, placed without regard to their activity."""
    hottest_first = _frequencies(shape)
    order = np.random.default_rng(0).permutation(hottest_first.active.shape[1])
    names = ("active", "named", "union4", "union16")
    shuffled = replace(hottest_first, **{name: getattr(hottest_first, name)[:, order] for name in names})
    sizes = shape.sizes(weight_format, neurons_per_row=GROUP)
    return Engine(sizes, shuffled, neuron_wise(sizes, budgets))


def power_infer(shape: ModelShape, weight_format: str, budgets: Budgets) -> Engine:
    """PowerInfer: the hottest neurons on the GPU, beside all that is always needed."""
    sizes = shape.sizes(weight_format, neurons_per_row=GROUP)
    return Engine(sizes, _frequencies(shape), neuron_wise(sizes, budgets))


ENGINES = {
    "llama.cpp": llama_cpp,
    "+predictors": with_predictors,
    "+engine": with_engine,
    "powerinfer": power_infer,
}


def layer_wise(sizes: ModelSizes, budgets: Budgets, mode: Mode) -> Placement:
    """Whole layers on the GPU from the first on, as many as fit; the head too where it still fits."""
    placement = _placement(sizes, budgets, mode, [_layer(sizes, "cpu", 0)] * sizes.n_layers)
    for count in range(1, sizes.n_layers + 1):
        layers = [_layer(sizes, "gpu", sizes.n_rows)] * count + [_layer(sizes, "cpu", 0)] * (sizes.n_layers - count)
        more = replace(placement, layers=tuple(layers))
        if _room(sizes, more) < 0:
            break
        placement = more
    with_head = replace(placement, head="gpu", embeddings="gpu" if sizes.tied else "cpu")
    return with_head if _room(sizes, with_head) >= 0 else placement


def neuron_wise(sizes: ModelSizes, budgets: Budgets) -> Placement:
    """What every token needs on the GPU as far as it fits, then each layer's first rows, alike in all layers.

    With the hottest rows first and the same activity in every layer, this is the split of most impact.
    """
    placement = _placement(sizes, budgets, "predicted", [_layer(sizes, "cpu", 0)] * sizes.n_layers)
    with_head = replace(placement, head="gpu", embeddings="gpu" if sizes.tied else "cpu")
    placement = with_head if _room(sizes, with_head) >= 0 else placement
    for count in range(1, sizes.n_layers + 1):
        layers = [_layer(sizes, "gpu", 0)] * count + [_layer(sizes, "cpu", 0)] * (sizes.n_layers - count)
        more = replace(placement, layers=tuple(layers))
        if _room(sizes, more) < 0:
            return placement
        placement = more
    room = _room(sizes, placement) // sizes.whole_row_bytes
    rows, left = divmod(min(room, sizes.n_layers * sizes.n_rows), sizes.n_layers)
    return replace(placement, layers=tuple(_layer(sizes, "gpu", rows + (i < left)) for i in range(sizes.n_layers)))


def _frequencies(shape: ModelShape) -> Frequencies:
    return shape.frequencies(neurons_per_row=GROUP)


def _placement(sizes: ModelSizes, budgets: Budgets, mode: Mode, layers: list[LayerPlan]) -> Placement:
    return Placement(
        mode=mode,
        sparse=mode != "dense",
        budgets=budgets,
        n_rows=sizes.n_rows,
        embeddings="cpu",
        head="cpu",
        layers=tuple(layers),
    )


def _layer(sizes: ModelSizes, attention: Unit, gpu_rows: int) -> LayerPlan:
    segments = []
    if gpu_rows:
        segments.append(Segment(0, gpu_rows, "gpu", "gpu"))
    if gpu_rows < sizes.n_rows:
        segments.append(Segment(gpu_rows, sizes.n_rows, "ram", "cpu"))
    return LayerPlan(attention, tuple(segments))


def _room(sizes: ModelSizes, placement: Placement) -> int:
    return placement.budgets.vram - sum(account(sizes, placement)["gpu"].values())


def _streamed(placement: Placement) -> Placement:
    layers = [
        LayerPlan("gpu", tuple(replace(segment, computed_on="gpu") for segment in layer.segments))
        for layer in placement.layers
    ]
    return replace(placement, layers=tuple(layers))
