"""Runs a model layer by layer over many tokens: all of them pass through a layer before the next layer is touched.

So a model larger than memory is read once for all of these tokens. The native operators take 16 tokens at a time, and
leave beside the new state what the layer's FFN read, before its norm and after, and what multiplied its down vectors.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hybrid.model.decoder import LayerParts
from hybrid.model.kv_cache import KV_DTYPES, LayerPages
from hybrid.model.pages import PAGE_TOKENS, pages_for
from hybrid.ops import cpu
from hybrid.runtime.engine import Engine
from hybrid.runtime.recorded import Recorder

# What a layer showed of some tokens: place of the first of them, the FFN's input and the residual state that it is the
# norm of [tokens, hidden], its activations [tokens, rows]; all fp32, in buffers that the next tokens overwrite.
Watch = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences that pass through a layer one after the other, their tokens side by side; int64 values by token."""

    token_ids: array[int]
    positions: array[int]
    tables: array[int]  # the address of each token's block table
    blocks: list[array[int]]

    def __len__(self) -> int:
        return len(self.token_ids)


class LayerRecorder(Recorder):
    """Also keeps the buffers of what the FFN recorded last reads: `ffn_input`, and `residual`, a copy of the state
    before the norm, since the state itself goes on to become the layer's output.
    """

    ffn_input: torch.Tensor
    residual: torch.Tensor

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        nothing = self.buffer("zeros", x.shape[1])
        self.ffn_input, self.residual = x, self.buffer("residual", x.shape[1])
        self.program.add(residual.data_ptr(), nothing.data_ptr(), x.shape[1], self.residual.data_ptr())
        return super().feed_forward(index, x, residual)


class LayerRunner:
    """The layers of an engine whose model is in host memory, in the engine's mode.

    Keys and values of a batch are kept for one layer at a time: all layers use the same pages.

    Args:
        engine: opened without a plan, in any mode but predicted; it stays open as long as this is used.
        context: tokens of the longest sequence.
        sequences: most sequences of one batch.

    """

    def __init__(self, engine: Engine, context: int, sequences: int) -> None:
        spec, scheduler, decoder = engine.directory.spec, engine.machine.scheduler, engine.decoder
        unit = engine.machine.units["cpu"]
        shape = (pages_for(context) + sequences, spec.n_kv_heads, PAGE_TOKENS, spec.head_dim)
        dtype = KV_DTYPES[engine.options.kv_format]
        pages = LayerPages(unit.empty(shape, dtype, "kv"), unit.empty(shape, dtype, "kv"))
        layers: list[LayerParts] = [replace(layer, pages=pages) for layer in decoder.layers]
        decoder = replace(decoder, layers=layers)
        self.hidden, self.neurons = spec.hidden_size, spec.n_neurons
        self.activations = torch.zeros(cpu.MAX_TOKENS, spec.n_neurons)
        self._recorder = LayerRecorder(spec, scheduler, self.activations)
        self._embed = self._recorder.begin()
        self._state = self._recorder.embed(decoder.outer)
        self._layers: list[tuple[cpu.Program, torch.Tensor, torch.Tensor]] = []
        for index in range(spec.n_layers):
            program = self._recorder.begin()
            decoder.layer(self._recorder, index, self._state)
            self._layers.append((program, self._recorder.ffn_input, self._recorder.residual))

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Sequences of token ids, each by itself from position 0."""
        blocks, taken = [], 0
        for ids in sequences:
            pages = pages_for(len(ids))
            blocks.append(array("q", range(taken, taken + pages)))
            taken += pages
        return Batch(
            array("q", [i for ids in sequences for i in ids]),
            array("q", [p for ids in sequences for p in range(len(ids))]),
            array("q", [b.buffer_info()[0] for ids, b in zip(sequences, blocks, strict=True) for _ in ids]),
            blocks,
        )

    def embed(self, batch: Batch, states: torch.Tensor) -> None:
        """Fill fp32 `states [tokens, hidden]` with what the first layer takes."""
        for at in range(0, len(batch), cpu.MAX_TOKENS):
            count = min(cpu.MAX_TOKENS, len(batch) - at)
            self._run(self._embed, batch, at)
            states[at : at + count] = self._state[:count]

    def run(self, index: int, batch: Batch, states: torch.Tensor, watch: Watch | None = None) -> float:
        """Take the batch through layer `index`: fp32 `states [tokens, hidden]` before it become those after it.

        Returns the seconds within native operators.
        """
        program, ffn_input, residual = self._layers[index]
        seconds = 0.0
        for at in range(0, len(batch), cpu.MAX_TOKENS):
            count = min(cpu.MAX_TOKENS, len(batch) - at)
            self._state[:count] = states[at : at + count]
            seconds += self._run(program, batch, at)
            states[at : at + count] = self._state[:count]
            if watch is not None:
                watch(at, ffn_input[:count], residual[:count], self.activations[:count])
        return seconds

    def _run(self, program: cpu.Program, batch: Batch, at: int) -> float:
        count = min(cpu.MAX_TOKENS, len(batch) - at)
        arrays = (batch.token_ids, batch.positions, batch.tables)
        ids, positions, tables = (values.buffer_info()[0] + at * values.itemsize for values in arrays)
        return program.run(count, ids, positions, tables)
