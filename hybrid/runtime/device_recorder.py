"""Records device operators: what a decoder, or a part of one, computes on a GPU. `HostRecorder` is its counterpart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hybrid.model.decoder import ComputeUnit, LayerParts, NormWeights, OuterParts, Projection
from hybrid.model.rotary import inverse_frequencies
from hybrid.ops import cuda_states, cuda_weights
from hybrid.ops.bank import RowBank
from hybrid.ops.limits import NATIVE_TOKENS
from hybrid.ops.scratch import Scratch
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.pieces import Pieces
from hybrid.runtime.step_inputs import StepInputs
from hybrid.runtime.unit import Unit
from hybrid.spec import ModelSpec


class DeviceRecorder:
    """Operators of one step over buffers `[NATIVE_TOKENS, ...]` on a device; see `Operators`.

    skip_inactive: of `reference.sparse_ffn`. inputs: of the step. context: tokens of the longest sequence there can be.
    pieces: takes each call, to be made when its turn comes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        skip_inactive: bool,
        device: torch.device,
        inputs: StepInputs,
        context: int,
        pieces: Pieces,
    ) -> None:
        self.spec, self.device = spec, device
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.scratch = Scratch(device)
        self._skip_inactive, self._context = skip_inactive, context
        self._inputs, self._pieces = inputs, pieces
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._tallied: dict[int, torch.Tensor] = {}  # by address
        self._turned = False  # whether the step's angles are known

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`."""
        y, inputs, offset = self.buffer("state", self.spec.hidden_size), self._inputs, self.spec.position_offset
        table, positions = outer.embeddings, outer.positions
        self._pieces.on_device("embeddings", lambda n: cuda_weights.embed(table, inputs.ids[:n], y[:n]))
        if positions is not None:
            at = inputs.positions
            self._pieces.on_device("embeddings", lambda n: cuda_weights.embed(positions, at[:n], y[:n], offset, True))
        return y

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`: there is one device."""
        return x

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        y = self.buffer("normalised", x.shape[1])
        self._norm(x[:, None], norm, self.spec.norm == "layer", y[:, None])
        return y

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
        """See `Operators`."""
        names = [f"projection {i} of {len(projections)}" for i in range(len(projections))]
        outputs = [self.buffer(name, p.weight.rows) for name, p in zip(names, projections, strict=True)]
        parts = [(p.weight, p.bias, y) for p, y in zip(projections, outputs, strict=True)]

        def call(tokens: int) -> None:
            there = [(weight, bias, y[:tokens]) for weight, bias, y in parts]
            cuda_weights.linear(x[:tokens], there, self.scratch)

        self._pieces.on_device("linear", call)
        return outputs

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        spec, y = self.spec, self.buffer("mixed", self.spec.q_size)
        queries, mixed = (t.view(NATIVE_TOKENS, spec.n_heads, spec.head_dim) for t in (q, y))
        keys, values = (t.view(NATIVE_TOKENS, spec.n_kv_heads, spec.head_dim) for t in (k, v))
        if layer.head_norms is not None:
            for heads, weight in ((queries, layer.head_norms.q), (keys, layer.head_norms.k)):
                self._norm(heads, NormWeights(weight, None), False, heads)
        if spec.positions == "rope":
            cosines, sines = self._angles()

            def rotation(n: int) -> None:
                for heads in (queries, keys):
                    cuda_states.rotate(heads[:n], cosines[:n], sines[:n])

            self._pieces.on_device("positions", rotation)
        pages, at, tables = layer.pages, self._inputs.positions, self._inputs.tables
        self._pieces.on_device("pages", lambda n: cuda_states.store(keys[:n], values[:n], pages, at[:n], tables[:n]))

        def attention(n: int) -> None:
            step, window = (at[:n], tables[:n]), spec.sliding_window
            cuda_states.attend(queries[:n], pages, *step, window, mixed[:n], self.scratch, self._context)

        self._pieces.on_device("attention", attention)
        return y

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        self._pieces.on_device("sums", lambda n: cuda_states.add(x[:n], y[:n], x[:n]))
        return x

    def add_vector(self, y: torch.Tensor, vector: torch.Tensor) -> None:
        """Add fp32 `[width]` to every token's `y`."""
        self._pieces.on_device("sums", lambda n: cuda_states.add(y[:n], vector.expand(n, -1), y[:n]))

    def predict(self, unit: Unit, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        """bool `[tokens, rows]`: what a predictor names."""
        named, predictor = self.buffer(buffer, rows.predictor.neurons, torch.bool), rows.predictor

        def call(n: int) -> None:
            cuda_weights.predict(x[:n], predictor, rows.neuron_ids, named[:n], self.scratch)

        self._pieces.on_device("predictors", call)
        return named

    def rows(
        self, unit: Unit, banks: Sequence[RowBank], x: torch.Tensor, named: torch.Tensor | None, buffer: str
    ) -> torch.Tensor:
        """fp32 `[tokens, hidden]`: what a unit's banks add."""
        y = self.buffer(buffer, x.shape[1])
        for i, bank in enumerate(banks):
            columns = slice(bank.first_row, bank.first_row + len(bank))
            if bank.buckets is not None:
                self._tallied[bank.buckets.counts.data_ptr()] = bank.buckets.counts

            def call(n: int, bank: RowBank = bank, columns: slice = columns, more: bool = i > 0) -> None:
                here = None if named is None else named[:n, columns]
                out = (y[:n], self.counts, self.scratch, more, bank.buckets)
                cuda_weights.sparse_ffn(bank, x[:n], here, self._skip_inactive, *out)

            self._pieces.on_device("feed-forward", call)
        return y

    def buffer(self, name: str, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`[NATIVE_TOKENS, width]`; the same one for the same name, since nothing outlives the next use."""
        if (name, width) not in self._buffers:
            self._buffers[name, width] = torch.zeros(NATIVE_TOKENS, width, dtype=dtype, device=self.device)
        return self._buffers[name, width]

    @property
    def bytes(self) -> int:
        """Of all buffers and scratch so far, the step's inputs included."""
        held = [*self._buffers.values(), *self._tallied.values(), self.counts]
        return sum(t.numel() * t.element_size() for t in held) + self.scratch.bytes + self._inputs.bytes

    def _norm(self, x: torch.Tensor, norm: NormWeights, centred: bool, y: torch.Tensor) -> None:
        """Of `[tokens, vectors, width]` each vector by itself."""
        weights, eps = (norm.weight, norm.bias, centred), self.spec.norm_eps
        self._pieces.on_device("norms", lambda n: cuda_states.norm(x[:n], *weights, eps, y[:n]))

    def _angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the step's rotary angles, which every layer uses: computed by the first that does."""
        half, at = self.spec.rotary_size // 2, self._inputs.positions
        cosines, sines = self.buffer("cosines", half), self.buffer("sines", half)
        if not self._turned:
            turns = inverse_frequencies(self.spec).to(self.device)
            self._pieces.on_device("positions", lambda n: cuda_states.angles(at[:n], turns, cosines[:n], sines[:n]))
            self._turned = True
        return cosines, sines
