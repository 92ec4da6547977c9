"""Rounds: some windows of the text go through the model together, each layer's weights used for all before the next.

Within a round a layer is shown to the counts, to the capture of samples, and to the predictor that names neurons from
what the layer's FFN read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from hybrid.runtime.by_layer import Batch, LayerRunner
from hybrid.stages.profile_text import Ints, TokenText, in_batches
from profiler.artifacts import UserError
from profiler.capture import Capture
from profiler.predictor import Predictor
from profiler.recorder import Recorder

BATCH_TOKENS = 512  # counted together, unless one window is longer
BATCH_WINDOWS = 64
OnTokens = Callable[[int], None]


@dataclass
class Clock:
    """Seconds so far. forward: of the model's own operators; capture: of all that goes on around them, samples and
    counts included; naming: of predictors naming neurons, to count them; training: of predictors.
    """

    forward: float = 0.0
    capture: float = 0.0
    naming: float = 0.0
    training: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A batch of a round: its tokens' place there, and the parts of the text that they are of, as (part, tokens)."""

    batch: Batch
    start: int
    parts: list[tuple[int, int]]

    @property
    def end(self) -> int:
        """Place after the last token."""
        return self.start + len(self.batch)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many threads of torch. Small operators between native ones take one: another would spin on the pool's core."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Round:
    """Windows on their way through the model.

    Args:
        runner: of the model.
        text: the text.
        windows: which of its windows.
        keep_inputs: keep what each layer's FFN reads for the whole round, not for one batch.
        clock: adds up the seconds.

    """

    def __init__(
        self, runner: LayerRunner, text: TokenText, windows: Ints, *, keep_inputs: bool, clock: Clock | None = None
    ) -> None:
        self.runner, self.clock = runner, clock or Clock()
        self.pieces: list[Piece] = []
        at = 0
        for run in in_batches(text, windows, BATCH_TOKENS, BATCH_WINDOWS):
            batch = runner.batch([text.window(w) for w in run])
            lengths = groupby(((int(text.parts[w]), int(text.lengths[w])) for w in run), key=lambda pair: pair[0])
            parts = [(part, sum(length for _, length in pairs)) for part, pairs in lengths]
            self.pieces.append(Piece(batch, at, parts))
            at += len(batch)
        self.tokens = at
        longest = max(len(piece.batch) for piece in self.pieces)
        # States, then what the FFNs read: one piece of memory, for whoever keeps both.
        self.kept = torch.zeros(at + (at if keep_inputs else longest), runner.hidden)
        self.states, self.inputs = self.kept[:at], self.kept[at:]
        self._keeps_inputs, self._threads = keep_inputs, torch.get_num_threads()
        self._bits = np.empty((longest, runner.neurons), dtype=np.uint8)

    def begin(self) -> None:
        """Fill the states with the embeddings."""
        began = time.perf_counter()
        for piece in self.pieces:
            self.runner.embed(piece.batch, self.states[piece.start : piece.end])
        self.clock.forward += time.perf_counter() - began

    def through(
        self,
        layer: int,
        recorder: Recorder | None,
        capture: Capture | None = None,
        predictor: Predictor | None = None,
        on_tokens: OnTokens = lambda tokens: None,
    ) -> None:
        """Take all windows through a layer; count, capture and name as asked.

        With `predictor` its names are counted batch by batch, from what this layer's FFN reads or from the state before
        its norm; a round that keeps inputs can do so later: `name`.

        Raises:
            UserError: a state is not a finite number: names the layer.
        """
        began, before = time.perf_counter(), (self.clock.forward, self.clock.naming)
        with torch_threads(1):
            for piece in self.pieces:
                self._through(piece, layer, recorder, capture, predictor)
                on_tokens(len(piece.batch))
        elsewhere = self.clock.forward - before[0] + self.clock.naming - before[1]
        self.clock.capture += time.perf_counter() - began - elsewhere

    def _through(
        self,
        piece: Piece,
        layer: int,
        recorder: Recorder | None,
        capture: Capture | None,
        predictor: Predictor | None,
    ) -> None:
        states = self.states[piece.start : piece.end]
        bits = self._bits[: len(piece.batch)]
        first = piece.start if self._keeps_inputs else 0
        inputs = self.inputs[first : first + len(piece.batch)]
        active = torch.from_numpy(bits).view(torch.bool)
        residuals = None
        if predictor is not None and predictor.reads == "residual":
            residuals = torch.empty_like(inputs)

        def watch(at: int, read: torch.Tensor, residual: torch.Tensor, activations: torch.Tensor) -> None:
            inputs[at : at + len(read)] = read
            if residuals is not None:
                residuals[at : at + len(read)] = residual
            torch.ne(activations, 0, out=active[at : at + len(read)])
            if capture is not None:
                capture.add(read, activations)

        self.clock.forward += self.runner.run(
            layer, piece.batch, states, watch if recorder is not None or capture is not None else None
        )
        if not torch.isfinite(states.sum(dtype=torch.float64)):
            raise UserError(
                f"layer {layer} computed values that are not finite numbers: "
                "the checkpoint is damaged, or its activations are beyond the range of its format"
            )
        if recorder is not None:
            recorder.active(layer, bits, piece.parts)
            if predictor is not None:
                self._name(layer, recorder, predictor, inputs if residuals is None else residuals)

    def name(self, layer: int, recorder: Recorder, predictor: Predictor, earlier: torch.Tensor | None = None) -> None:
        """Count what a predictor names for all windows, of the layer that they passed last.

        earlier: fp32 `[tokens, hidden]`, what the FFN of the layer before read, for a predictor that reads that.
        """
        assert self._keeps_inputs and predictor.reads != "residual", "the round keeps what FFNs read"
        read = self.inputs
        if predictor.reads == "previous_ffn_input":
            assert earlier is not None, "the layer before was looked at"
            read = earlier
        for inputs in torch.split(read, BATCH_TOKENS):
            self._name(layer, recorder, predictor, inputs)

    def _name(self, layer: int, recorder: Recorder, predictor: Predictor, inputs: torch.Tensor) -> None:
        began = time.perf_counter()
        with torch_threads(self._threads):
            named = predictor.named(inputs)
        recorder.named(layer, named.view(torch.uint8).numpy())
        self.clock.naming += time.perf_counter() - began
