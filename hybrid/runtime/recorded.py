"""A decode step recorded once as a native program, and run with one call.

The decoder is walked once with a `Recorder` in the place of operators: instead of computing, each call appends the
native operator to a program, over buffers that all layers share. Running the program then is the whole step. Where a
layer's rows lie on two units, those of the other unit are a program of their own, which goes over a native lane.
Between programs numpy copies: a thread of torch's would spin on a core of the native pool for milliseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import numpy as np
import torch

from hybrid.model.decoder import ComputeUnit, Decoder, Projection
from hybrid.model.eager import Step
from hybrid.ops import cpu
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.activity import Activity, Overlap
from hybrid.runtime.feed_forwards import FeedForwards
from hybrid.runtime.host_recorder import HostRecorder
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.trace import Spans, noted
from hybrid.spec import ModelSpec

CLOSED = "this model was closed; its memory is gone"


class Recorder(FeedForwards, HostRecorder):
    """Appends to a program what a decoder asks for whose units are all of host memory; see `Operators`.

    activations: as `HostRecorder` shows them.
    """

    def __init__(self, spec: ModelSpec, scheduler: Scheduler, activations: torch.Tensor | None = None) -> None:
        FeedForwards.__init__(self, scheduler)
        HostRecorder.__init__(self, spec, scheduler.skip_inactive, activations, prefetch=scheduler.prefetch)
        self._lane: cpu.Lane | None = None  # where a layer is split
        self.programs: list[cpu.Program] = []  # all that were begun, those of other units among them

    def begin(self, new_step: bool = True) -> cpu.Program:
        """See `HostRecorder`."""
        self.programs.append(super().begin(new_step))
        return self.program

    def _predicted(self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        return self.predict(self.scheduler.layers[index].near, rows, x, buffer)

    def _predicted_ahead(
        self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str
    ) -> Callable[[], torch.Tensor]:
        self.requests.settle(self.program)
        named = self._predicted(index, rows, x, buffer)
        self.requests.ahead(self.program, self.scheduler.layers[index], named)
        return lambda: named

    def _here(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        layer = self.scheduler.layers[index]
        return self.rows(layer.near, layer.near_banks, x, named, "feed-forward")

    def _on_both(self, index: int, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        layer, here, lane = self.scheduler.layers[index], self.program, self._lane or cpu.Lane()
        assert layer.far is not None, "rows elsewhere have a unit"
        far = self.begin(new_step=False)
        far.mark(index)
        far_y = self.rows(layer.far, layer.far_banks, x, named, "of the other unit")
        self.program, self._lane = here, lane
        here.hand_over(lane, far)
        if not self.scheduler.overlap:
            here.wait(lane)
        y = self._here(index, x, named) if layer.near_banks else far_y
        here.join(lane)
        return self.add(y, far_y) if layer.near_banks else y

    def _add_bias(self, y: torch.Tensor, bias: torch.Tensor) -> None:
        self.add_vector(y, bias)


class RecordedStep:
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens, all of it on `units` of host memory."""

    def __init__(self, decoder: Decoder, scheduler: Scheduler, units: Sequence[ComputeUnit]) -> None:
        recorder = Recorder(decoder.spec, scheduler)
        self._program: cpu.Program | None = recorder.begin()
        self._hidden = decoder.forward(recorder)
        self._recorder: Recorder | None = recorder
        self._tally = scheduler.tally
        self._units = {unit.pool: unit.name for unit in units if unit.pool is not None}
        head, unit = decoder.outer.head, decoder.outer.head_unit
        self._programs = list(recorder.programs)
        self._picked = recorder.buffer("picked", head.columns)
        self._head: cpu.Program | None = recorder.begin()
        (self._logits,) = recorder.project(unit, self._picked, [Projection(head, None)])
        self._no_tokens = array("q", (0,))  # the head needs no ids, positions or blocks

    def run(self, step: Step, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` as `Decoder.forward`, in a buffer that the next run overwrites.

        Raises:
            RuntimeError: the step is closed.
        """
        if self._recorder is None or self._program is None:
            raise RuntimeError(CLOSED)
        tokens = len(step.token_ids)
        ids, positions = array("q", step.token_ids), array("q", step.positions)
        tables = array("q", [s.blocks.buffer_info()[0] for s in step.spans for _ in range(s.count)])
        addresses = [values.buffer_info()[0] for values in (ids, positions, tables)]
        for counts in self._recorder.counts.values():
            counts[0] = counts[1] = 0  # a run that failed may have left some
        with noted(self._programs, self._units, spans):
            activity.native_seconds += self._program.run(tokens, *addresses)
        if self._tally is not None:
            self._tally.tokens += tokens
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
            raise RuntimeError(CLOSED)
        tokens = len(hidden)
        if not tokens:
            return self._logits[:0]
        np.copyto(self._picked.numpy()[:tokens], hidden.numpy())
        unused = self._no_tokens.buffer_info()[0]
        with noted([self._head], self._units, spans):
            activity.native_seconds += self._head.run(tokens, unused, unused, unused)
        return self._logits[:tokens]

    def next_logits(
        self, step: Step, wanted: Sequence[int], activity: Activity, spans: Spans | None = None
    ) -> torch.Tensor:
        """fp32 `[wanted, vocab]`: a step, and the logits of some of its tokens, by their places in it."""
        hidden = self.run(step, activity, spans).numpy()[list(wanted)]
        return self.logits(torch.from_numpy(hidden), activity, spans)

    def seconds(self) -> dict[str, float]:
        """What native operators of this thread took so far, by kind, the head as one of its own."""
        assert self._program is not None and self._head is not None
        return {**self._program.seconds, "head": sum(self._head.seconds.values())}

    def close(self) -> None:
        """Forget the programs and the memory that they hold."""
        self._recorder = self._program = self._head = None
        self._programs.clear()  # whoever keeps the traceback of a failure keeps this list
        self._units.clear()
