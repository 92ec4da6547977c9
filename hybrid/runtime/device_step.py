"""A decode step on a GPU and the host: recorded once, and for each number of tokens one launch and one wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import torch

from hybrid.model.decoder import Decoder
from hybrid.model.eager import Step
from hybrid.runtime.activity import Activity
from hybrid.runtime.pieces import Piece
from hybrid.runtime.recorded import CLOSED
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.step_recorder import StepRecorder
from hybrid.runtime.streams import Streams

ABANDONED: list[object] = []  # what a driver that failed might still call; kept until the process ends


class DeviceStep:
    """A decoder's step for up to `cpu.MAX_TOKENS` tokens, on the host and on a device with operators of its own.

    context: tokens of the longest sequence there can be. streams: of the device, where the step's pieces go.
    """

    def __init__(
        self, decoder: Decoder, scheduler: Scheduler, context: int, device: torch.device, streams: Streams
    ) -> None:
        recorder = StepRecorder(decoder.spec, scheduler, device, context)
        self.pieces, self._hidden = recorder.step(decoder)
        self._next, self._logits = recorder.head(decoder.outer, self._hidden)
        self._picked = recorder.picked(decoder.outer)
        self._head, _ = recorder.head(decoder.outer, self._picked)
        self._recorder: StepRecorder | None = recorder
        self._streams = streams

    @property
    def bytes(self) -> int:
        """What it holds of the device, beside weights and pages."""
        return self._open().device.bytes

    def run(self, step: Step, activity: Activity) -> torch.Tensor:
        """fp32 `[tokens, hidden]` as `Decoder.forward`, where the head is, in a buffer that the next run overwrites.

        Raises:
            RuntimeError: the step is closed, or an operator failed on either side.
        """
        self._step(step, False, activity)
        return self._hidden[: len(step.token_ids)]

    def next_logits(self, step: Step, wanted: Sequence[int], activity: Activity) -> torch.Tensor:
        """fp32 `[wanted, vocab]` on the host: a step, and the logits of some of its tokens, by their places in it.

        Of all of them they are part of what is launched. Raises as `run` does.
        """
        tokens = len(step.token_ids)
        every = list(wanted) == list(range(tokens))
        self._step(step, every, activity)
        return self._logits[:tokens] if every else self.logits(self._hidden[list(wanted)], activity)

    def logits(self, hidden: torch.Tensor, activity: Activity) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host as `Decoder.logits`, in a buffer that the next call overwrites."""
        recorder, tokens = self._open(), len(hidden)
        if tokens:
            self._picked[:tokens] = hidden
            recorder.inputs.count(tokens)
            self._launch(("head", tokens), self._head, tokens, activity)
        return self._logits[:tokens]

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

    def _step(self, step: Step, head: bool, activity: Activity) -> None:
        recorder, tokens = self._open(), len(step.token_ids)
        before = [function.seconds for function, _ in recorder.splits]
        host_counts = recorder.host.counts["cpu"]
        host_counts[0] = host_counts[1] = 0  # a step that failed may have left some
        recorder.inputs.fill(step)
        pieces = [*self.pieces, *self._next] if head else self.pieces
        self._launch(("step", tokens, head), pieces, tokens, activity)
        for unit, counts in (("gpu", recorder.device_counts.tolist()), ("cpu", host_counts)):
            rows = activity.rows(unit)
            rows.gated += counts[0]
            rows.finished += counts[1]
        self._note_overlap(before, activity)
        if head:  # every operator has run: a graph is captured without making memory
            recorder.device.scratch.freeze()

    def _launch(self, name: tuple[object, ...], pieces: Sequence[Piece], tokens: int, activity: Activity) -> None:
        """Have pieces done, and raise what failed."""
        host_step, began = self._open().host_step, time.perf_counter()

        def issue() -> None:
            for piece in pieces:
                piece.issue(self._streams, tokens)

        try:
            self._streams.run(name, issue)
        except BaseException:
            with contextlib.suppress(Exception):  # what failed first is on its way
                host_step.take_failure()
            raise
        host_step.take_failure()
        activity.native_seconds += time.perf_counter() - began

    def _note_overlap(self, before: Sequence[float], activity: Activity) -> None:
        """Add the seconds of layers computed on both units, where the streams know the device's."""
        splits = zip(self._open().splits, before, strict=True)
        for ((function, attention_there), then), together in zip(splits, self._streams.together, strict=False):
            on_host = function.seconds - then
            near, far = (on_host, together.main) if attention_there else (together.main, on_host)
            activity.near_seconds += near
            activity.far_seconds += far
            activity.wait_seconds += together.total - near

    def _open(self) -> StepRecorder:
        if self._recorder is None:
            raise RuntimeError(CLOSED)
        return self._recorder
