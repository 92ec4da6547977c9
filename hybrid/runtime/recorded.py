"""A decode step recorded once as a native program, and run with one call.

The decoder is walked once with a `Recorder` in the place of operators: instead of computing, each call appends the
native operator to a program, over buffers that all layers share. Running the program then is the whole step. Where a
layer's rows lie on two units, those of the other unit are a program of their own, which goes over a native lane.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch

from hybrid.model.decoder import Decoder, Projection
from hybrid.model.eager import Step
from hybrid.ops import cpu
from hybrid.predictors.rows import RowPredictor
from hybrid.runtime.activity import Activity
from hybrid.runtime.feed_forwards import FeedForwards
from hybrid.runtime.host_recorder import HostRecorder
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.spec import ModelSpec

CLOSED = "this model was closed; its memory is gone"


class Recorder(FeedForwards, HostRecorder):
    """Appends to a program what a decoder asks for whose units are all of host memory; see `Operators`.

    activations: as `HostRecorder` shows them.
    """

    def __init__(self, spec: ModelSpec, scheduler: Scheduler, activations: torch.Tensor | None = None) -> None:
        FeedForwards.__init__(self, scheduler)
        HostRecorder.__init__(self, spec, scheduler.skip_inactive, activations)
        self._lane: cpu.Lane | None = None  # where a layer is split

    def _predicted(self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str) -> torch.Tensor:
        return self.predict(self.scheduler.layers[index].near, rows, x, buffer)

    def _predicted_ahead(
        self, index: int, rows: RowPredictor, x: torch.Tensor, buffer: str
    ) -> Callable[[], torch.Tensor]:
        named = self._predicted(index, rows, x, buffer)
        return lambda: named

    def _here(self, layer: SplitLayer, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        return self.rows(layer.near, layer.near_banks, x, named, "feed-forward")

    def _on_both(self, layer: SplitLayer, x: torch.Tensor, named: torch.Tensor | None) -> torch.Tensor:
        assert layer.far is not None, "rows elsewhere have a unit"
        here, lane = self.program, self._lane or cpu.Lane()
        far = self.begin(new_step=False)
        far_y = self.rows(layer.far, layer.far_banks, x, named, "of the other unit")
        self.program = here
        here.hand_over(lane, far)
        y = self.rows(layer.near, layer.near_banks, x, named, "feed-forward") if layer.near_banks else far_y
        here.join(lane)
        self._lane = lane
        return self.add(y, far_y) if layer.near_banks else y

    def _add_bias(self, y: torch.Tensor, bias: torch.Tensor) -> None:
        self.add_vector(y, bias)


class RecordedStep:
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens."""

    def __init__(self, decoder: Decoder, scheduler: Scheduler) -> None:
        recorder = Recorder(decoder.spec, scheduler)
        self._program: cpu.Program | None = recorder.begin()
        self._hidden = decoder.forward(recorder)
        self._recorder: Recorder | None = recorder
        self._overlap = (0.0, 0.0, 0.0)  # of the runs so far
        head, unit = decoder.outer.head, decoder.outer.head_unit
        self._picked = recorder.buffer("picked", head.columns)
        self._head: cpu.Program | None = recorder.begin()
        (self._logits,) = recorder.project(unit, self._picked, [Projection(head, None)])
        self._no_tokens = array("q", (0,))  # the head needs no ids, positions or blocks

    def run(self, step: Step, activity: Activity) -> torch.Tensor:
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
        activity.native_seconds += self._program.run(tokens, *addresses)
        before, self._overlap = self._overlap, self._program.overlap
        near, far, wait = (now - then for now, then in zip(self._overlap, before, strict=True))
        activity.near_seconds += near
        activity.far_seconds += far
        activity.wait_seconds += wait
        for unit, counts in self._recorder.counts.items():
            rows = activity.rows(unit)
            rows.gated += counts[0]
            rows.finished += counts[1]
            counts[0] = counts[1] = 0
        return self._hidden[:tokens]

    def logits(self, hidden: torch.Tensor, activity: Activity) -> torch.Tensor:
        """fp32 `[tokens, vocab]` as `Decoder.logits`, in a buffer that the next call overwrites.

        Raises:
            RuntimeError: the step is closed.
        """
        if self._head is None:
            raise RuntimeError(CLOSED)
        tokens = len(hidden)
        if not tokens:
            return self._logits[:0]
        self._picked[:tokens] = hidden
        unused = self._no_tokens.buffer_info()[0]
        activity.native_seconds += self._head.run(tokens, unused, unused, unused)
        return self._logits[:tokens]

    def next_logits(self, step: Step, wanted: Sequence[int], activity: Activity) -> torch.Tensor:
        """fp32 `[wanted, vocab]`: a step, and the logits of some of its tokens, by their places in it."""
        return self.logits(self.run(step, activity)[list(wanted)], activity)

    def seconds(self) -> dict[str, float]:
        """What native operators of this thread took so far, by kind, the head as one of its own."""
        assert self._program is not None and self._head is not None
        return {**self._program.seconds, "head": sum(self._head.seconds.values())}

    def close(self) -> None:
        """Forget the programs and the memory that they hold."""
        self._recorder = self._program = self._head = None
