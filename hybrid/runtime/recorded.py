"""A decode step recorded once as a native program, and run with one call.

The decoder is walked once with a `Recorder` in the place of operators: instead of computing, each call appends the
native operator to a program, over buffers that all layers share. Where a layer's rows lie on two units, those of the
other unit are a program of their own, which goes over a native lane.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from hybrid.model.decoder import ComputeUnit, Decoder, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.eager import Step
from hybrid.model.rotary import inverse_frequencies
from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.activity import Activity, Overlap
from hybrid.runtime.requests import RowRequests
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.trace import Spans, noted
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec


class Recorder:
    """Appends to a program what a decoder asks for; see `hybrid.model.decoder.Operators`.

    activations: fp32 `[MAX_TOKENS, rows]`, where each layer leaves what multiplies its down vectors, for who wants to
    see it; None shows nothing.
    """

    def __init__(self, spec: ModelSpec, scheduler: Scheduler, activations: torch.Tensor | None = None) -> None:
        self.spec, self.scheduler = spec, scheduler
        self.counts = {"gpu": array("q", (0, 0)), "cpu": array("q", (0, 0))}
        self.kept: list[object] = []  # memory that programs hold by address
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._activations = activations
        self._ahead: dict[int, torch.Tensor] = {}  # by layer, what the layer before it names
        self._lane: cpu.Lane | None = None  # where a layer is split
        self._requests = RowRequests(scheduler.prefetch)
        self.programs: list[cpu.Program] = []  # all that were begun, those of other units among them
        self._program = cpu.Program()

    def begin(self) -> cpu.Program:
        """Another program, to which all is appended from now on."""
        self._program = cpu.Program()
        self.programs.append(self._program)
        return self._program

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`. What belongs to a step and not to a layer is computed here too: the rotary angles."""
        y, table = self.state, outer.embeddings
        self._program.computed_by(_pool(outer.embeddings_unit))
        self._program.embed(*cpu.matrix_arguments(table)[:3], table.columns, y.data_ptr())
        self.kept.append(table)
        if outer.positions is not None:
            positions, width = cpu.matrix_arguments(outer.positions)[:3], outer.positions.columns
            self._program.add_positions(*positions, width, self.spec.position_offset, y.data_ptr())
            self.kept.append(outer.positions)
        self.angles()
        return y

    def angles(self) -> None:
        """The step's rotary angles, which every layer of its program may use; nothing where positions are learned."""
        if self.spec.positions == "rope":
            frequencies = inverse_frequencies(self.spec).contiguous()
            self.kept.append(frequencies)
            cosines, sines = self._angles()
            self._program.angles(frequencies.data_ptr(), len(frequencies), cosines.data_ptr(), sines.data_ptr())

    @property
    def state(self) -> torch.Tensor:
        """fp32 `[MAX_TOKENS, hidden]`: what `embed` fills and each layer takes and leaves."""
        return self._buffer("state", self.spec.hidden_size)

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`: all units are in host memory here."""
        self._program.computed_by(_pool(unit))
        self._program.mark(-1 if layer is None else layer)
        return x

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        y = self._buffer("normalised", x.shape[1])
        bias = 0 if norm.bias is None else norm.bias.data_ptr()
        centred, width, eps = self.spec.norm == "layer", x.shape[1], self.spec.norm_eps
        self._program.norm(centred, x.data_ptr(), norm.weight.data_ptr(), bias, width, 1, eps, y.data_ptr())
        self.kept.append(norm)
        return y

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
        """See `Operators`."""
        count = len(projections)
        outputs = [self._buffer(f"projection {i} of {count}", p.weight.rows) for i, p in enumerate(projections)]
        matrices = [cpu.matrix_arguments(p.weight, p.bias, y) for p, y in zip(projections, outputs, strict=True)]
        self._program.linear(_pool(unit), x.data_ptr(), x.shape[1], matrices)
        self.kept.extend(projections)
        return outputs

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        spec, y = self.spec, self._buffer("mixed", self.spec.q_size)
        if layer.head_norms is not None:
            for x, heads, weight in ((q, spec.n_heads, layer.head_norms.q), (k, spec.n_kv_heads, layer.head_norms.k)):
                at = x.data_ptr()
                self._program.norm(False, at, weight.data_ptr(), 0, spec.head_dim, heads, spec.norm_eps, at)
            self.kept.append(layer.head_norms)
        if spec.positions == "rope":
            angles = [angle.data_ptr() for angle in self._angles()]
            self._program.rotate(q.data_ptr(), spec.n_heads, spec.head_dim, spec.rotary_size, *angles)
            self._program.rotate(k.data_ptr(), spec.n_kv_heads, spec.head_dim, spec.rotary_size, *angles)
        keys, values = layer.pages.keys, layer.pages.values
        pages = (keys.data_ptr(), values.data_ptr(), cpu.PAGE_FORMATS[keys.dtype])
        self._program.store(k.data_ptr(), v.data_ptr(), *pages, spec.n_kv_heads, spec.head_dim)
        shape = (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.sliding_window or 0)
        self._program.attention(_pool(layer.unit), q.data_ptr(), *pages, *shape, y.data_ptr())
        self.kept.append(layer.pages)
        return y

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        layer, y = self.scheduler.layers[index], self._buffer("feed-forward", x.shape[1])
        named = self._named(index, x, residual) if self.scheduler.mode == "predicted" else None
        if layer.far_banks:
            self._on_both(index, x, named, y)
        else:
            self._rows(self._program, layer.near, layer.near_banks, x, named, y)
        if layer.down_bias is not None:
            self._program.add_vector(layer.down_bias.data_ptr(), x.shape[1], y.data_ptr())
            self.kept.append(layer.down_bias)
        return y

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        self._program.add(x.data_ptr(), y.data_ptr(), x.shape[1], x.data_ptr())
        return x

    def _named(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """As `Scheduler` names rows: by this layer's predictor, or by what was recorded with the layer before."""
        layer = self.scheduler.layers[index]
        assert layer.predictor is not None, "predicted mode has predictors"
        reads = layer.predictor.predictor.reads
        if reads == "previous_ffn_input":
            named = self._ahead[index]
        else:
            named = self._predict(layer.near, layer.predictor, x if reads == "ffn_input" else residual, "named")
        following = self.scheduler.ahead_of(index)
        if following is not None:  # two buffers in turn: this layer's own rows are still to be computed
            unit = self.scheduler.layers[index + 1].near
            self._requests.settle(self._program)
            self._ahead[index + 1] = self._predict(unit, following, x, f"named ahead {index % 2}")
            self._requests.ahead(self._program, self.scheduler.layers[index + 1], self._ahead[index + 1])
        return named

    def _predict(self, unit: Unit, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        predictor = rows.predictor
        if predictor.fc2 is None:  # no state changes what it names
            named = predictor.named(torch.zeros(cpu.MAX_TOKENS, 1))
            self.kept.append(named)
            return named
        named = self._buffer(buffer, predictor.neurons, torch.bool)
        first = None if predictor.fc1 is None else cpu.matrix_arguments(predictor.fc1)
        second = cpu.matrix_arguments(predictor.fc2, predictor.bias)
        rectified, threshold, ids = predictor.family == "perceptron", predictor.threshold, rows.neuron_ids.data_ptr()
        state = (x.data_ptr(), x.shape[1])
        self._program.predict(_pool(unit), first, rectified, second, threshold, ids, *state, named.data_ptr())
        self.kept.append(rows)
        return named

    def _on_both(self, index: int, x: torch.Tensor, named: torch.Tensor | None, y: torch.Tensor) -> None:
        """As `Scheduler.on_both`: the other unit's rows go over the lane while this one computes its own."""
        layer, far, lane = self.scheduler.layers[index], cpu.Program(), self._lane or cpu.Lane()
        assert layer.far is not None, "rows elsewhere have a unit"
        self.programs.append(far)
        far.mark(index)
        far.computed_by(_pool(layer.far))
        far_y = self._buffer("of the other unit", x.shape[1]) if layer.near_banks else y
        self._rows(far, layer.far, layer.far_banks, x, named, far_y)
        self._program.hand_over(lane, far)
        if not self.scheduler.overlap:
            self._program.wait(lane)
        self._rows(self._program, layer.near, layer.near_banks, x, named, y)
        self._program.join(lane)
        if layer.near_banks:
            self._program.add(y.data_ptr(), far_y.data_ptr(), x.shape[1], y.data_ptr())
        self._lane = lane

    def _rows(
        self,
        program: cpu.Program,
        unit: Unit,
        banks: Sequence[RowBank],
        x: torch.Tensor,
        named: torch.Tensor | None,
        y: torch.Tensor,
    ) -> None:
        """Fill `y` with what a unit's banks add."""
        if named is not None and not any(named is known for known in self._ahead.values()):
            self._requests.now(program, unit, banks, named)
        counts = self.counts[unit.name].buffer_info()[0]
        for i, bank in enumerate(banks):
            here = 0 if named is None else named.data_ptr() + bank.first_row
            stride = 0 if named is None else named.shape[1]
            skip, bias = self.scheduler.skip_inactive, bank.addresses[1]
            arguments = (*cpu.bank_arguments(bank), skip, bias, x.data_ptr(), here, stride, i > 0)
            table = self._activations
            shown = (0, 0) if table is None else (table[:, bank.first_row :].data_ptr(), table.stride(0))
            program.sparse_ffn(_pool(unit), *arguments, y.data_ptr(), counts, *shown)
            self.kept += [bank.memory, table]

    def _angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.spec.rotary_size // 2
        return self._buffer("cosines", half), self._buffer("sines", half)

    def _buffer(self, name: str, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`[MAX_TOKENS, width]`; the same one for the same name, since nothing outlives the next use."""
        if (name, width) not in self._buffers:
            self._buffers[name, width] = torch.zeros(cpu.MAX_TOKENS, width, dtype=dtype)
        return self._buffers[name, width]


class RecordedStep:
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens."""

    def __init__(self, decoder: Decoder, scheduler: Scheduler) -> None:
        recorder = Recorder(decoder.spec, scheduler)
        self._program: cpu.Program | None = recorder.begin()
        self._hidden = decoder.forward(recorder)
        self._recorder: Recorder | None = recorder
        self._programs = recorder.programs
        self._units = {_pool(unit): unit.name for unit in _units(decoder, scheduler)}
        head, unit = decoder.outer.head, decoder.outer.head_unit
        self._picked = torch.zeros(cpu.MAX_TOKENS, head.columns)
        self._logits = torch.zeros(cpu.MAX_TOKENS, head.rows)
        matrix = cpu.matrix_arguments(head, None, self._logits)
        self._head: cpu.Program | None = cpu.Program()
        self._head.linear(_pool(unit), self._picked.data_ptr(), head.columns, [matrix])
        recorder.kept.append(head)
        self._no_tokens = array("q", (0,))  # the head needs no ids, positions or blocks

    def run(self, step: Step, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` as `Decoder.forward`, in a buffer that the next run overwrites.

        Raises:
            RuntimeError: the step is closed.
        """
        if self._recorder is None or self._program is None:
            raise RuntimeError("this model was closed; its memory is gone")
        tokens = len(step.token_ids)
        ids, positions = array("q", step.token_ids), array("q", step.positions)
        tables = array("q", [s.blocks.buffer_info()[0] for s in step.spans for _ in range(s.count)])
        addresses = [values.buffer_info()[0] for values in (ids, positions, tables)]
        for counts in self._recorder.counts.values():
            counts[0] = counts[1] = 0  # a run that failed may have left some
        with noted(self._programs, self._units, spans):
            activity.native_seconds += self._program.run(tokens, *addresses)
        activity.overlap.add(Overlap(*self._program.overlap))
        for unit, counts in self._recorder.counts.items():
            rows = activity.rows(unit)
            rows.gated += counts[0]
            rows.finished += counts[1]
        return self._hidden[:tokens]

    def logits(self, hidden: torch.Tensor, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, vocab]` as `Decoder.logits`, in a buffer that the next call overwrites.

        Raises:
            RuntimeError: the step is closed.
        """
        if self._head is None:
            raise RuntimeError("this model was closed; its memory is gone")
        tokens, unused = len(hidden), self._no_tokens.buffer_info()[0]
        self._picked[:tokens] = hidden
        with noted([self._head], self._units, spans):
            activity.native_seconds += self._head.run(tokens, unused, unused, unused)
        return self._logits[:tokens]

    def seconds(self) -> dict[str, float]:
        """What native operators of this thread took so far, by kind, the head as one of its own."""
        assert self._program is not None and self._head is not None
        return {**self._program.seconds, "head": sum(self._head.seconds.values())}

    def close(self) -> None:
        """Forget the programs and the memory that they hold."""
        self._recorder = self._program = self._head = None
        self._programs.clear()  # whoever keeps the traceback of a failure keeps this list
        self._units.clear()


def record(decoder: Decoder, scheduler: Scheduler) -> RecordedStep | None:
    """The recorded step of a model whose layers are all in host memory; None for others."""
    host = all(unit.pool is not None for unit in _units(decoder, scheduler))
    return RecordedStep(decoder, scheduler) if host else None


def _units(decoder: Decoder, scheduler: Scheduler) -> list[ComputeUnit]:
    elsewhere = [layer.far for layer in scheduler.layers if layer.far is not None and layer.far_banks]
    return [decoder.outer.embeddings_unit, decoder.outer.head_unit, *(p.unit for p in decoder.layers), *elsewhere]


def _pool(unit: ComputeUnit) -> cpu.Pool:
    assert unit.pool is not None, "recorded units are in host memory"
    return unit.pool
