"""Passes of tokens through a model: recorded where they are few, else one operator after the other.

One that takes long can be left between two layers, and others be computed before it goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import torch

from hybrid.model.eager import EagerOperators, Step
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.activity import Activity
from hybrid.runtime.failures import explained
from hybrid.runtime.loader import Machine
from hybrid.runtime.recorded import CLOSED
from hybrid.runtime.recording import Recorded
from hybrid.runtime.timing import StepTimes, TimedOperators
from hybrid.runtime.trace import Spans


class Passes:
    """What a machine computes, counted in activities; see `failures.explained` for what a pass raises."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @torch.inference_mode()
    def hidden(self, step: Step, activity: Activity) -> torch.Tensor:
        """fp32 `[tokens, hidden]` that the head reads, where the head is; the next pass may overwrite it."""
        self._begin(step, activity)
        recorded = self._recorded(len(step.token_ids))
        with self._explained(step):
            if recorded is not None:
                return recorded.run(step, activity)
            return LongPass(self.machine, step, activity, None).finish()

    @torch.inference_mode()
    def next_logits(
        self, step: Step, wanted: Sequence[int], activity: Activity, spans: Spans | None = None
    ) -> torch.Tensor:
        """fp32 `[wanted, vocab]` on the host, of some tokens by their places in the step; the next may overwrite it."""
        self._begin(step, activity)
        recorded = self._recorded(len(step.token_ids))
        with self._explained(step):
            if recorded is not None:
                return recorded.next_logits(step, wanted, activity, spans)
            last = LongPass(self.machine, step, activity, spans).finish()[list(wanted)]
            return self._logits(last, activity, spans)

    @torch.inference_mode()
    def begin(self, step: Step, activity: Activity, spans: Spans | None = None) -> LongPass:
        """A pass that is computed by `advance`, in pieces."""
        self._begin(step, activity)
        return LongPass(self.machine, step, activity, spans)

    @torch.inference_mode()
    def advance(self, long: LongPass, seconds: float | None, wanted: bool) -> torch.Tensor | None:
        """Go on with a pass for about so long, one layer at least; None: to its end.

        fp32 `[0 or 1, vocab]` on the host once it is done, with `wanted` the logits of its last token; None before.
        """
        with self._explained(long.step):
            hidden = long.advance(seconds)
            return None if hidden is None else self._logits(hidden[-1:] if wanted else hidden[:0], *long.told)

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host of any number of rows that `hidden` gave."""
        parts = torch.split(hidden, self.machine.prefill_tokens)
        return torch.cat([self.machine.decoder.logits(part).cpu() for part in parts])

    def _logits(self, last: torch.Tensor, activity: Activity, spans: Spans | None) -> torch.Tensor:
        decoder, recorded = self.machine.decoder, self.machine.recorded
        if not len(last):
            return torch.empty(0, decoder.spec.vocab_size)
        if recorded is not None and len(last) <= MAX_TOKENS:
            return recorded.logits(last, activity, spans)
        times = StepTimes()
        with times.span(decoder.outer.head_unit, None, "linear"):
            logits = decoder.logits(last)
        times.settle(activity.overlap, spans)
        return logits.cpu()

    def _recorded(self, tokens: int) -> Recorded | None:
        """The recorded step, where it serves one of so many tokens."""
        few = tokens <= MAX_TOKENS and self.machine.scheduler.tap is None
        return self.machine.recorded if few else None

    def _begin(self, step: Step, activity: Activity) -> None:
        if self.machine.closed:
            raise RuntimeError(CLOSED)
        activity.tokens += len(step.token_ids)
        activity.positions += step.attended

    def _explained(self, step: Step) -> contextlib.AbstractContextManager[None]:
        return explained(len(step.token_ids), self.machine.units.get("gpu"))


class LongPass:
    """A pass of operators that are called one after the other. What it knows between two layers it keeps itself: the
    scheduler and its buffers serve other passes meanwhile, and pages that it writes are read by none of them.
    """

    def __init__(self, machine: Machine, step: Step, activity: Activity, spans: Spans | None) -> None:
        if machine.lane is not None:
            machine.lane.check()
        self.step = step
        self.told = activity, spans
        self._machine, self._times = machine, StepTimes()
        eager = EagerOperators(machine.decoder.spec, step, machine.scheduler.feed_forward)
        self._layers = machine.decoder.layer_by_layer(eager if spans is None else TimedOperators(eager, self._times))
        self._ahead = torch.empty(0, dtype=torch.bool)

    def finish(self) -> torch.Tensor:
        """fp32 `[tokens, hidden]` that the head reads."""
        hidden = self.advance(None)
        assert hidden is not None
        return hidden

    def advance(self, seconds: float | None) -> torch.Tensor | None:
        """As many layers as take about so long, one at least, None: all; what `finish` gives once they are done."""
        scheduler, began, layers = self._machine.scheduler, time.perf_counter(), 0
        scheduler.activity, scheduler.times, scheduler.ahead = self.told[0], self._times, self._ahead
        while True:
            try:
                next(self._layers)
            except StopIteration as done:
                self._times.settle(self.told[0].overlap, self.told[1])
                hidden: torch.Tensor = done.value
                return hidden
            self._machine.settle_memory()
            if seconds is None:
                continue
            for unit in self._machine.units.values():
                if unit.device.type == "cuda":  # which computes later than it is told to
                    torch.cuda.current_stream(unit.device).synchronize()
            layers += 1
            taken = time.perf_counter() - began
            if taken * (layers + 1) / layers > seconds:
                self._ahead = scheduler.ahead
                return None
