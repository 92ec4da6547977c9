"""Appends native operators to programs: what a decoder, or a part of one, computes in host memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch

from hybrid.model.decoder import ComputeUnit, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.rotary import inverse_frequencies
from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.requests import RowRequests
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec

Allocate = Callable[[int, torch.dtype], torch.Tensor]  # [MAX_TOKENS, width] zeros in host memory


def ordinary(width: int, dtype: torch.dtype) -> torch.Tensor:
    """`[MAX_TOKENS, width]` zeros in ordinary memory."""
    return torch.zeros(cpu.MAX_TOKENS, width, dtype=dtype)


class HostRecorder:
    """Operators of one step over buffers `[MAX_TOKENS, ...]`, in one program after the other; see `Operators`.

    skip_inactive: of `reference.sparse_ffn`. activations: fp32 `[MAX_TOKENS, rows]`, where each layer leaves what
    multiplies its down vectors, for who wants to see it; None shows nothing. allocate: makes buffers. prefetch: named
    rows are asked of the drive.
    """

    def __init__(
        self,
        spec: ModelSpec,
        skip_inactive: bool,
        activations: torch.Tensor | None = None,
        allocate: Allocate = ordinary,
        prefetch: bool = False,
    ) -> None:
        self.spec = spec
        self.counts = {"gpu": array("q", (0, 0)), "cpu": array("q", (0, 0))}
        self.kept: list[object] = []  # memory that programs hold by address
        self.program = cpu.Program()
        self._skip_inactive, self._activations = skip_inactive, activations
        self._allocate = allocate
        self.requests = RowRequests(prefetch)
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._turned = False  # whether the step's angles are known

    def begin(self, new_step: bool = True) -> cpu.Program:
        """Another program, to which all is appended from now on; of a step of its own, or of the same step."""
        self.program = cpu.Program()
        self._turned = self._turned and not new_step
        return self.program

    @property
    def state(self) -> torch.Tensor:
        """fp32 `[MAX_TOKENS, hidden]`: what `embed` fills and each layer takes and leaves."""
        return self.buffer("state", self.spec.hidden_size)

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`."""
        y = self.state
        self.program.computed_by(_pool(outer.embeddings_unit))
        self.program.embed(*cpu.matrix_arguments(outer.embeddings)[:3], outer.embeddings.columns, y.data_ptr())
        if outer.positions is not None:
            positions, width = cpu.matrix_arguments(outer.positions)[:3], outer.positions.columns
            self.program.add_positions(*positions, width, self.spec.position_offset, y.data_ptr())
        self.kept.append(outer)
        return y

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`: all units of host memory reach all of it."""
        self.program.computed_by(_pool(unit))
        self.program.mark(-1 if layer is None else layer)
        return x

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        y = self.buffer("normalised", x.shape[1])
        bias = 0 if norm.bias is None else norm.bias.data_ptr()
        centred, width, eps = self.spec.norm == "layer", x.shape[1], self.spec.norm_eps
        self.program.norm(centred, x.data_ptr(), norm.weight.data_ptr(), bias, width, 1, eps, y.data_ptr())
        self.kept.append(norm)
        return y

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
        """See `Operators`."""
        outputs = [
            self.buffer(f"projection {i} of {len(projections)}", p.weight.rows) for i, p in enumerate(projections)
        ]
        matrices = [cpu.matrix_arguments(p.weight, p.bias, y) for p, y in zip(projections, outputs, strict=True)]
        self.program.linear(_pool(unit), x.data_ptr(), x.shape[1], matrices)
        self.kept.extend(projections)
        return outputs

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        spec, y = self.spec, self.buffer("mixed", self.spec.q_size)
        if layer.head_norms is not None:
            for x, heads, weight in ((q, spec.n_heads, layer.head_norms.q), (k, spec.n_kv_heads, layer.head_norms.k)):
                at = x.data_ptr()
                self.program.norm(False, at, weight.data_ptr(), 0, spec.head_dim, heads, spec.norm_eps, at)
            self.kept.append(layer.head_norms)
        if spec.positions == "rope":
            angles = [angle.data_ptr() for angle in self._angles()]
            self.program.rotate(q.data_ptr(), spec.n_heads, spec.head_dim, spec.rotary_size, *angles)
            self.program.rotate(k.data_ptr(), spec.n_kv_heads, spec.head_dim, spec.rotary_size, *angles)
        keys, values = layer.pages.keys, layer.pages.values
        pages = (keys.data_ptr(), values.data_ptr(), cpu.PAGE_FORMATS[keys.dtype])
        self.program.store(k.data_ptr(), v.data_ptr(), *pages, spec.n_kv_heads, spec.head_dim)
        shape = (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.sliding_window or 0)
        self.program.attention(_pool(layer.unit), q.data_ptr(), *pages, *shape, y.data_ptr())
        self.kept.append(layer.pages)
        return y

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        self.program.add(x.data_ptr(), y.data_ptr(), x.shape[1], x.data_ptr())
        return x

    def add_vector(self, y: torch.Tensor, vector: torch.Tensor) -> None:
        """Add fp32 `[width]` to every token's `y`."""
        self.program.add_vector(vector.data_ptr(), y.shape[1], y.data_ptr())
        self.kept.append(vector)

    def predict(self, unit: Unit, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        """bool `[tokens, rows]`: what a predictor names."""
        predictor = rows.predictor
        if predictor.fc2 is None:  # no state changes what it names
            every = predictor.threshold < 0
            return self.buffer("named of all" if every else "named of none", predictor.neurons, torch.bool).fill_(every)
        named = self.buffer(buffer, predictor.neurons, torch.bool)
        first = None if predictor.fc1 is None else cpu.matrix_arguments(predictor.fc1)
        second = cpu.matrix_arguments(predictor.fc2, predictor.bias)
        rectified, threshold, ids = predictor.family == "perceptron", predictor.threshold, rows.neuron_ids.data_ptr()
        state = (x.data_ptr(), x.shape[1])
        self.program.predict(_pool(unit), first, rectified, second, threshold, ids, *state, named.data_ptr())
        self.kept.append(rows)
        return named

    def rows(
        self, unit: Unit, banks: Sequence[RowBank], x: torch.Tensor, named: torch.Tensor | None, buffer: str
    ) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: what a unit's banks add."""
        y, counts = self.buffer(buffer, x.shape[1]), self.counts[unit.name].buffer_info()[0]
        if named is not None:
            self.requests.now(self.program, unit, banks, named)
        for i, bank in enumerate(banks):
            here = 0 if named is None else named.data_ptr() + bank.first_row
            stride = 0 if named is None else named.shape[1]
            arguments = (*cpu.bank_arguments(bank), self._skip_inactive, bank.addresses[1])
            table = self._activations
            shown = (0, 0) if table is None else (table[:, bank.first_row :].data_ptr(), table.stride(0))
            state, buckets = (x.data_ptr(), here, stride), bank.buckets
            tally = () if buckets is None else (buckets.counts.data_ptr(), buckets.rows, bank.first_row)
            self.program.sparse_ffn(_pool(unit), *arguments, *state, i > 0, y.data_ptr(), counts, *shown, *tally)
            self.kept += [bank.memory, table, buckets]
        return y

    def buffer(self, name: str, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`[MAX_TOKENS, width]`; the same one for the same name, since nothing outlives the next use."""
        if (name, width) not in self._buffers:
            self._buffers[name, width] = self._allocate(width, dtype)
        return self._buffers[name, width]

    def _angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the step's rotary angles, which every layer uses: computed by the first that does."""
        half = self.spec.rotary_size // 2
        cosines, sines = self.buffer("cosines", half), self.buffer("sines", half)
        if not self._turned:
            frequencies = inverse_frequencies(self.spec).contiguous()
            self.kept.append(frequencies)
            self.program.angles(frequencies.data_ptr(), half, cosines.data_ptr(), sines.data_ptr())
            self._turned = True
        return cosines, sines


def _pool(unit: ComputeUnit) -> cpu.Pool:
    assert unit.pool is not None, "recorded programs are for units of host memory"
    return unit.pool
