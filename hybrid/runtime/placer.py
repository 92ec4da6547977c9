"""Places one model's tensors on units, counting each by purpose: what `model_sizes` counts for placement.

What is copied to another unit comes straight from its file, and what stays on the host is left where it is or, where
files are not to be mapped, read now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from hybrid.model.decoder import HeadNorms, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.kv_cache import KV_DTYPES, LayerPages
from hybrid.model.pages import PAGE_TOKENS
from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.scheduler import SplitLayer
from hybrid.runtime.unit import Unit
from hybrid.runtime.upload import MappedTensor
from hybrid.store.directory import ModelDirectory
from hybrid.store.stored import Origin, StoredFile
from placement.plan import LayerPlan
from profiler.matrix import Matrix


class Placer:
    """Places one model's tensors, counting each by purpose."""

    def __init__(self, directory: ModelDirectory, options: EngineOptions, units: dict[str, Unit], blocks: int) -> None:
        self.directory, self.spec, self.units, self.blocks = directory, directory.spec, units, blocks
        self.options = options
        self.banks: list[RowBank] = []
        self.on_drive: list[Origin] = []  # rows that the plan leaves there

    def outer(self) -> OuterParts:
        """Embeddings, final norm and head."""
        plan, spec = self.options.plan, self.spec
        embeddings_unit = self.units[plan.embeddings if plan else "cpu"]
        head_unit = self.units[plan.head if plan else "cpu"]
        embeddings = self._matrix("embed.weight", embeddings_unit, "embeddings")
        positions = None
        if spec.positions == "learned":
            positions = self._matrix("positions.weight", embeddings_unit, "embeddings")
        head = embeddings
        if not spec.tied_embeddings:
            head = self._matrix("head.weight", head_unit, "head")
        norm = self._norm("final_norm", head_unit, "norms")
        return OuterParts(embeddings, positions, norm, head, embeddings_unit, head_unit)

    def attention(self, index: int, unit_name: str) -> LayerParts:
        """One layer's attention, norms and pages."""
        spec, unit, name = self.spec, self.units[unit_name], f"layers.{index}"
        shape = (self.blocks, spec.n_kv_heads, PAGE_TOKENS, spec.head_dim)
        dtype = KV_DTYPES[self.options.kv_format]
        pages = LayerPages(unit.empty(shape, dtype, "kv"), unit.empty(shape, dtype, "kv"))
        q, k, v, o = (self._projection(name, part, unit) for part in ("q", "k", "v", "o"))
        before = self._norm(f"{name}.attn_norm", unit, "attention")
        after = before if spec.shared_norm else self._norm(f"{name}.ffn_norm", unit, "attention")
        heads = None
        if spec.qk_norm:
            q_norm, k_norm = (self._vector(f"{name}.{part}.weight", unit, "attention") for part in ("q_norm", "k_norm"))
            heads = HeadNorms(q_norm, k_norm)
        return LayerParts(before, q, k, v, o, heads, after, pages, unit)

    def ffn(self, index: int, layer: LayerPlan) -> SplitLayer:
        """One layer's rows in banks, a bank per segment, and its predictor."""
        rows, cutoffs = self.directory.layer(index, keep=False), self.options.cutoffs
        near = self.units[layer.attention]
        banks: dict[str, list[RowBank]] = {"gpu": [], "cpu": []}
        for segment in layer.segments:
            unit, part = self.units[segment.computed_on], slice(segment.start, segment.stop)
            if segment.on_flash:
                self.on_drive.append(rows.file.origin(rows.rows[part]))
            bias = None if rows.bias is None else _place_view(unit, rows.file, rows.bias[part], "neurons")
            bank = RowBank(
                _place_view(unit, rows.file, rows.rows[part], "neurons"),
                rows.weight_format,
                hidden=self.spec.hidden_size,
                gated=self.spec.gated,
                activation=self.spec.activation,
                bias=bias,
                first_row=segment.start,
                cutoff=max(self.spec.activation_cutoff, 0.0 if cutoffs is None else cutoffs[index]),
            )
            banks[unit.name].append(bank)
            self.banks.append(bank)
        far = next((u for u in self.units.values() if u is not near), None)
        down_bias = self._vector(f"layers.{index}.down.bias", near, "attention") if self.spec.ffn_bias else None
        predictor = self._predictor(index, near, torch.from_numpy(rows.neuron_ids))
        return SplitLayer(near, far, banks[near.name], banks[far.name] if far else [], predictor, down_bias)

    def dense_bytes_per_token(self, outer: OuterParts) -> int:
        """Bytes that every token touches whatever fires: attention, norms, predictors, the head, one embedding row."""
        placed: Counter[str] = sum((unit.used for unit in self.units.values()), Counter())
        looked_up = [table.nbytes // table.rows for table in (outer.embeddings, outer.positions) if table is not None]
        return placed["attention"] + placed["norms"] + placed["predictors"] + outer.head.nbytes + sum(looked_up)

    def _predictor(self, index: int, unit: Unit, neuron_ids: torch.Tensor) -> RowPredictor | None:
        if self.options.mode != "predicted":
            return None
        assert self.options.predictors is not None
        placed = self.options.predictors.layers[index].moved(
            lambda matrix: replace(matrix, data=self._of_predictors(matrix.data, unit)),
            lambda bias: self._of_predictors(bias, unit),
        )
        return RowPredictor(placed, neuron_ids.to(unit.device), unit.linear)

    def _projection(self, layer: str, part: str, unit: Unit) -> Projection:
        biased = part in self.spec.biased_projections
        bias = self._vector(f"{layer}.{part}.bias", unit, "attention") if biased else None
        return Projection(self._matrix(f"{layer}.{part}.weight", unit, "attention"), bias)

    def _norm(self, name: str, unit: Unit, purpose: str) -> NormWeights:
        bias = self._vector(f"{name}.bias", unit, purpose) if self.spec.norm == "layer" else None
        return NormWeights(self._vector(f"{name}.weight", unit, purpose), bias)

    def _vector(self, name: str, unit: Unit, purpose: str) -> torch.Tensor:
        return _place_view(unit, self.directory.dense_file, self.directory.dense(name, keep=False), purpose)

    def _matrix(self, name: str, unit: Unit, purpose: str) -> Matrix:
        matrix = self.directory.matrix(name, keep=False)
        return replace(matrix, data=_place_view(unit, self.directory.dense_file, matrix.data, purpose))

    def _of_predictors(self, tensor: torch.Tensor, unit: Unit) -> torch.Tensor:
        """A part of a predictor, which another library has mapped, or which was made and lies in memory."""
        if unit.in_place:
            return unit.place(tensor if self.options.mmap else tensor.clone(), "predictors")
        return unit.place(tensor, "predictors", MappedTensor(tensor) if tensor.is_contiguous() else None)


def _place_view(unit: Unit, file: StoredFile, view: torch.Tensor, purpose: str) -> torch.Tensor:
    """Place a view of a file of the store."""
    return unit.place(view, purpose, file.origin(view))
