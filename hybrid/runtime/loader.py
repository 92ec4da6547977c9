"""From a model directory and a plan to parts that run: every tensor placed on its unit, every row in a bank.

Without a plan everything is on the host, in place. What is placed here is what `model_sizes` counts for placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from hybrid.model.decoder import Decoder, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.kv_cache import KV_FORMATS, PAGE_TOKENS, LayerPages, pages_for
from hybrid.ops import native_guard
from hybrid.ops.bank import RowBank
from hybrid.predictors.low_rank import RowPredictor
from hybrid.runtime.lane import Lane, ThreadLane
from hybrid.runtime.scheduler import MODES, Mode, Scheduler, SplitLayer
from hybrid.runtime.sizes import PREFILL_TOKENS, SPLIT_PREFILL_TOKENS, buffer_bytes
from hybrid.runtime.unit import Unit, cuda_unit, host_unit, stand_in_unit, usable_cores
from hybrid.store.directory import ModelDirectory
from placement.plan import LayerPlan, Plan, Segment
from profiler.artifacts import UserError
from profiler.predictor import PredictorSet

DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened.

    mode: what is computed. plan: where; None puts everything on the host. second_device: what a plan's GPU is here,
    `cuda` or `cpu` (a stand-in made of ordinary memory). context: tokens of one sequence, prompt and output; None takes
    the plan's, else the model's own up to 4096. threads: of the CPU; None takes all usable cores.
    """

    mode: Mode
    plan: Plan | None = None
    second_device: Literal["cuda", "cpu"] | None = None
    predictors: PredictorSet | None = None
    context: int | None = None
    max_sequences: int = 1
    kv_format: str = "f16"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is not known; modes are {', '.join(MODES)}")
        if self.kv_format not in KV_FORMATS:
            raise UserError(f"KV format {self.kv_format!r} is not known; formats are {', '.join(KV_FORMATS)}")
        if self.second_device is not None and self.plan is None:
            raise UserError("a second device needs a plan that says what it holds: hybrid plan DIR --vram SIZE")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"{self.threads} threads make no sense; give 1 to 1024, or leave it to the machine")


@dataclass
class Machine:
    """A loaded model: what computes, and where it lies."""

    decoder: Decoder
    scheduler: Scheduler
    units: dict[str, Unit]
    lane: Lane | None
    banks: list[RowBank]
    context: int
    prefill_tokens: int
    guards: list[int]

    def close(self) -> None:
        """Stop the lane, invalidate the banks, forget the units."""
        if self.lane is not None:
            self.lane.close()
        for bank in self.banks:
            bank.close()
        for guard in self.guards:
            native_guard.unguard_mapping(guard)
        self.guards.clear()
        for unit in self.units.values():
            unit.close()


def load_machine(directory: ModelDirectory, options: EngineOptions) -> Machine:
    """Place a model as its plan says.

    Raises:
        UserError: the plan or the predictors are of another model, the context is out of range, a budget is too small.
    """
    plan, spec = options.plan, directory.spec
    if plan is not None:
        check_plan(directory, plan)
    if options.mode == "predicted" and options.predictors is None:
        raise UserError(f"{directory.path} has no predictors; make them with: hybrid profile {directory.path} --text FILE")
    context = choose_context(options, spec.max_positions)
    units = make_units(options)
    prefill = PREFILL_TOKENS if plan is None else SPLIT_PREFILL_TOKENS
    if "gpu" in units:
        units["gpu"].reserve(buffer_bytes(spec, prefill, context), "buffers")
    placer = _Placer(directory, options, units, pages_for(context) * options.max_sequences)
    layers = plan.layers if plan is not None else whole_on_host(spec.n_layers, spec.n_neurons)
    outer = placer.outer()
    parts = [placer.attention(i, layer.attention) for i, layer in enumerate(layers)]
    split = [placer.ffn(i, layer) for i, layer in enumerate(layers)]
    lane = ThreadLane() if any(layer.far_banks for layer in split) else None
    scheduler = Scheduler(split, options.mode, spec.has_exact_zeros, lane)
    decoder = Decoder(spec, outer, parts, scheduler.feed_forward)
    guards = [native_guard.guard_mapping(*mapping) for mapping in directory.mappings()]
    return Machine(decoder, scheduler, units, lane, placer.banks, context, prefill, guards)


def check_plan(directory: ModelDirectory, plan: Plan) -> None:
    """Refuse a plan that was made for another model, another packing or another row order."""
    mend = f"make one with: hybrid plan {directory.path} --vram SIZE"
    if plan.pack_digest != directory.pack_digest:
        raise UserError(f"the plan was made for another model than {directory.path}; {mend}")
    if plan.row_order_digest != directory.row_order_digest():
        raise UserError(f"the rows of {directory.path} were profiled anew since the plan was made; {mend}")


def choose_context(options: EngineOptions, trained: int) -> int:
    """Tokens of one sequence."""
    planned = options.plan.context if options.plan is not None else None
    context = options.context or planned or min(trained, DEFAULT_CONTEXT)
    if not 2 <= context <= trained:
        raise UserError(f"a context of {context} tokens is out of range: the model was trained for 2 to {trained}")
    if planned is not None and context > planned:
        raise UserError(f"the plan has room for {planned} tokens of context, not {context}; plan anew with --context")
    return context


def make_units(options: EngineOptions) -> dict[str, Unit]:
    """The host, and what the plan's GPU is here; a stand-in shares the host's cores evenly."""
    cores = options.threads or usable_cores()
    if options.plan is None:
        return {"cpu": host_unit(cores)}
    budget = options.plan.vram
    if options.second_device == "cpu":
        return {"cpu": host_unit(max(1, cores - cores // 2)), "gpu": stand_in_unit(max(1, cores // 2), budget)}
    if options.second_device == "cuda" or options.plan.uses("gpu"):
        return {"cpu": host_unit(cores), "gpu": cuda_unit(budget)}
    return {"cpu": host_unit(cores)}


def whole_on_host(layers: int, rows: int) -> tuple[LayerPlan, ...]:
    """Every layer on the host, in one segment."""
    return (LayerPlan("cpu", (Segment(0, rows, "ram", "cpu"),)),) * layers


class _Placer:
    """Places one model's tensors, counting each by purpose."""

    def __init__(self, directory: ModelDirectory, options: EngineOptions, units: dict[str, Unit], blocks: int) -> None:
        self.directory, self.spec, self.units, self.blocks = directory, directory.spec, units, blocks
        self.options = options
        self.banks: list[RowBank] = []

    def outer(self) -> OuterParts:
        plan, spec = self.options.plan, self.spec
        embeddings_unit = self.units[plan.embeddings if plan else "cpu"]
        head_unit = self.units[plan.head if plan else "cpu"]
        embeddings = embeddings_unit.place(self.directory.dense("embed.weight"), "embeddings")
        positions = None
        if spec.positions == "learned":
            positions = embeddings_unit.place(self.directory.dense("positions.weight"), "embeddings")
        head = embeddings
        if not spec.tied_embeddings:
            head = head_unit.place(self.directory.dense("head.weight"), "head")
        elif head_unit is not embeddings_unit:
            head = head_unit.place(self.directory.dense("embed.weight"), "head")
        return OuterParts(embeddings, positions, self._norm("final_norm", head_unit, "norms"), head, head_unit.linear)

    def attention(self, index: int, unit_name: str) -> LayerParts:
        spec, unit, name = self.spec, self.units[unit_name], f"layers.{index}"
        shape = (self.blocks, spec.n_kv_heads, PAGE_TOKENS, spec.head_dim)
        dtype = KV_FORMATS[self.options.kv_format]
        pages = LayerPages(unit.empty(shape, dtype, "kv"), unit.empty(shape, dtype, "kv"))
        projections = [self._projection(f"{name}.{part}", unit) for part in ("q", "k", "v", "o")]
        before = self._norm(f"{name}.attn_norm", unit, "norms")
        after = self._norm(f"{name}.ffn_norm", unit, "norms")
        return LayerParts(before, *projections, after, pages, unit.linear)

    def ffn(self, index: int, layer: LayerPlan) -> SplitLayer:
        rows = self.directory.layer(index)
        near = self.units[layer.attention]
        banks: dict[str, list[RowBank]] = {"gpu": [], "cpu": []}
        for segment in layer.segments:
            unit, part = self.units[segment.computed_on], slice(segment.start, segment.stop)
            bias = None if rows.bias is None else unit.place(rows.bias[part], "neurons")
            bank = RowBank(
                unit.place(rows.rows[part], "neurons"),
                hidden=self.spec.hidden_size,
                gated=self.spec.gated,
                activation=self.spec.activation,
                bias=bias,
                first_row=segment.start,
            )
            banks[unit.name].append(bank)
            self.banks.append(bank)
        far = next((u for u in self.units.values() if u is not near), None)
        down_bias = self._vector(f"layers.{index}.down.bias", near, "norms") if self.spec.ffn_bias else None
        predictor = self._predictor(index, near, torch.from_numpy(rows.neuron_ids).long())
        return SplitLayer(near, far, banks[near.name], banks[far.name] if far else [], predictor, down_bias)

    def _predictor(self, index: int, unit: Unit, row_to_id: torch.Tensor) -> RowPredictor | None:
        if self.options.mode != "predicted":
            return None
        assert self.options.predictors is not None
        predictor = self.options.predictors.layers[index]
        fc1 = unit.place(predictor.fc1, "predictors")
        fc2 = unit.place(predictor.fc2[row_to_id].contiguous(), "predictors")
        return RowPredictor(fc1, fc2, predictor.threshold, unit.linear)

    def _projection(self, name: str, unit: Unit) -> Projection:
        weight = unit.place(self.directory.dense(f"{name}.weight"), "attention")
        return Projection(weight, self._vector(f"{name}.bias", unit, "attention") if self.spec.attention_bias else None)

    def _norm(self, name: str, unit: Unit, purpose: str) -> NormWeights:
        bias = self._vector(f"{name}.bias", unit, purpose) if self.spec.norm == "layer" else None
        return NormWeights(self._vector(f"{name}.weight", unit, purpose), bias)

    def _vector(self, name: str, unit: Unit, purpose: str) -> torch.Tensor:
        return unit.place(self.directory.dense(name).float(), purpose)
