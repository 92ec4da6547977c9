"""A decode step on a GPU and the host: recorded once, and for each number of tokens one launch and one wait."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence

import torch

from hybrid.model.decoder import ComputeUnit, Decoder
from hybrid.model.eager import Step
from hybrid.runtime.activity import Activity, Overlap
from hybrid.runtime.pieces import Piece
from hybrid.runtime.recorded import CLOSED
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.step_recorder import StepRecorder
from hybrid.runtime.streams import Streams
from hybrid.runtime.timed_streams import TimedStreams
from hybrid.runtime.timing import StepTimes
from hybrid.runtime.trace import Spans, noted

ABANDONED: list[object] = []  # what a driver that failed might still call; kept until the process ends


class DeviceStep:
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens, on the host and on a device with operators of its own.

    units: of the decoder and the scheduler; those without a pool are the device. context: tokens of the longest
    sequence there can be. streams: of the device, where the step's pieces go.

    Where the device computes by itself, how long both units took together is known of steps with spans only: what is
    replayed as a graph is not timed.
    """

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        units: Sequence[ComputeUnit],
        context: int,
        streams: Streams,
    ) -> None:
        self._device = next(unit for unit in units if unit.pool is None)
        self._names = {unit.pool: unit.name for unit in units if unit.pool is not None}
        recorder = StepRecorder(decoder.spec, scheduler, self._device.device, context)
        self.pieces, self._hidden = recorder.step(decoder)
        self._next, self._logits = recorder.head(decoder.outer, self._hidden)
        self._picked = recorder.picked(decoder.outer)
        self._head, _ = recorder.head(decoder.outer, self._picked)
        self._recorder: StepRecorder | None = recorder
        self._streams, self._tally = streams, scheduler.tally
        self._warm = False

    @property
    def bytes(self) -> int:
        """What it holds of the device, beside weights and pages."""
        return self._open().device.bytes

    def run(self, step: Step, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` as `Decoder.forward`, where the head is, in a buffer that the next run overwrites.

        Raises:
            RuntimeError: the step is closed, or an operator failed on either side.
        """
        self._step(step, False, activity, spans)
        return self._hidden[: len(step.token_ids)]

    def next_logits(
        self, step: Step, wanted: Sequence[int], activity: Activity, spans: Spans | None = None
    ) -> torch.Tensor:
        """fp32 `[wanted, vocab]` on the host: a step, and the logits of some of its tokens, by their places in it.

        Of all of them they are part of what is launched. Raises as `run` does.
        """
        tokens = len(step.token_ids)
        every = list(wanted) == list(range(tokens))
        self._step(step, every, activity, spans)
        return self._logits[:tokens] if every else self.logits(self._hidden[list(wanted)], activity, spans)

    def logits(self, hidden: torch.Tensor, activity: Activity, spans: Spans | None = None) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host as `Decoder.logits`, in a buffer that the next call overwrites."""
        recorder, tokens = self._open(), len(hidden)
        if tokens:
            self._picked[:tokens] = hidden
            recorder.inputs.count(tokens)
            self._launch(("head", tokens), self._head, tokens, activity, spans)
        return self._logits[:tokens]

    def seconds(self) -> dict[str, float]:
        """What native operators of the host took so far, by kind."""
        taken: Counter[str] = Counter()
        for program in self._open().programs:
            taken.update(program.seconds)
        return dict(taken)

    def close(self) -> None:
        """Wait for the device, and forget what was recorded."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        certain = self._streams.close()
        recorder.host_step.close()
        if not certain:
            ABANDONED.append(recorder.functions)
        self.pieces, self._next, self._head = [], [], []
        self._hidden = self._logits = self._picked = torch.empty(0)

    def _step(self, step: Step, head: bool, activity: Activity, spans: Spans | None) -> None:
        recorder, tokens = self._open(), len(step.token_ids)
        host_counts = recorder.host.counts["cpu"]
        host_counts[0] = host_counts[1] = 0  # a step that failed may have left some
        recorder.inputs.fill(step)
        head = head or not self._warm  # the first step has all operators run: what is captured later makes no memory
        pieces = [*self.pieces, *self._next] if head else self.pieces
        together = self._launch(("step", tokens, head), pieces, tokens, activity, spans)
        if self._tally is not None:
            self._tally.tokens += tokens
        for unit, counts in (("gpu", recorder.device_counts.tolist()), ("cpu", host_counts)):
            rows = activity.rows(unit)
            rows.gated += counts[0]
            rows.finished += counts[1]
        for (function, attention_there), (main, joined) in zip(recorder.splits, together, strict=False):
            near, far = (function.span, main) if attention_there else (main, function.span)
            activity.overlap.add(Overlap.of_layer(near, far, max(0.0, joined - near[1])))
        if not self._warm:
            recorder.device.scratch.freeze()
            self._warm = True

    def _launch(
        self, name: tuple[object, ...], pieces: Sequence[Piece], tokens: int, activity: Activity, spans: Spans | None
    ) -> list[tuple[tuple[float, float], float]]:
        """Have pieces done, and raise what failed; what `TimedStreams.together` knows."""
        recorder, times, began = self._open(), StepTimes(), time.perf_counter()
        timed = TimedStreams(self._streams, times, self._device)
        in_turn = self._device.device.type != "cuda"  # then times cost nothing

        def issue() -> None:
            for piece in pieces:
                timed.piece = piece
                piece.issue(timed if in_turn or spans is not None else self._streams, tokens)

        try:
            with contextlib.ExitStack() as stack:
                for program in (piece.program for piece in pieces if spans is not None):
                    if program is not None:
                        stack.callback(program.note, False)
                        stack.enter_context(noted([program], self._names, spans))
                self._streams.run(name if spans is None else None, issue)
        except BaseException:
            with contextlib.suppress(Exception):  # what failed first is on its way
                recorder.host_step.take_failure()
            raise
        recorder.host_step.take_failure()
        activity.native_seconds += time.perf_counter() - began
        times.settle(activity.overlap, spans)
        return timed.together()

    def _open(self) -> StepRecorder:
        if self._recorder is None:
            raise RuntimeError(CLOSED)
        return self._recorder
