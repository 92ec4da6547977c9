"""The engine: sequences in, tokens out. A step is schedule, run, sample; everything else is set up once.

One caller at a time. The engine owns the units, the lane and the mapped model, and gives all of them back on `close`.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import TracebackType

import torch

from hybrid.model.decoder import Decoder
from hybrid.model.eager import EagerOperators, Step
from hybrid.model.kv_cache import BlockAllocator, Span
from hybrid.model.pages import pages_for
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.activity import Activity, Ledger
from hybrid.runtime.failures import explained
from hybrid.runtime.loader import Machine, Tell, load_machine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.recorded import CLOSED
from hybrid.runtime.recording import Recorded
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.runtime.timing import StepTimes, TimedOperators
from hybrid.runtime.trace import Spans, StepKind, Trace
from hybrid.store.directory import ModelDirectory
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError
from profiler.tap import Tap


@dataclass(frozen=True)
class Planned:
    """One sequence's part of a step."""

    sequence: TokenSequence
    token_ids: list[int]
    span: Span

    @property
    def is_last(self) -> bool:
        """Whether a token follows once this is computed: nothing of the sequence is left then."""
        return self.span.count == self.sequence.pending


class Engine:
    """A model opened in a mode on a placement."""

    def __init__(self, directory: ModelDirectory, options: EngineOptions, tell: Tell | None = None) -> None:
        self.directory = directory
        self.options = replace(options, predictors=None)  # the machine has them, perhaps in memory of its own
        self.tokenizer = load_tokenizer(directory.path)
        self.machine: Machine = load_machine(directory, options, tell)
        self.context = self.machine.context
        self.allocator = BlockAllocator(pages_for(self.context) * options.max_sequences)
        self.decoder: Decoder = self.machine.decoder
        self.ledger = Ledger()
        self.trace: Trace | None = None  # that steps are added to
        self.waiting: list[TokenSequence] = []
        self.running: list[TokenSequence] = []

    def add(self, sequence: TokenSequence) -> None:
        """Take a request; it is computed by the steps that follow. Raises as `check` does."""
        self.check(sequence)
        self.waiting.append(sequence)

    def check(self, sequence: TokenSequence) -> None:
        """Refuse a request that cannot be computed.

        Raises:
            UserError: the prompt is empty, does not fit the context, or it or its logit_bias has ids that the model
                does not know; or a file of the model was cut or grown since it was opened.
        """
        self.directory.check_unchanged()
        self._check_ids(sequence.prompt_ids)
        sequence.params.check_vocabulary(self.directory.spec.vocab_size)
        if len(sequence.prompt_ids) >= self.context:
            raise UserError(
                f"the prompt has {len(sequence.prompt_ids)} tokens, and the context of {self.context} leaves room for "
                f"{self.context - 1} and one to generate; shorten it, or ask for a larger --context"
            )

    def step(self) -> list[TokenSequence]:
        """Advance: a piece of one prompt where one waits, else one token of every running sequence.

        Raises:
            UserError: the GPU has no memory left, or failed; or logits are not finite numbers.
        """
        prefill = bool(self.waiting) and len(self.running) < self.options.max_sequences
        activity = self.ledger.prefill if prefill else self.ledger.decode
        began = time.perf_counter()
        with self._traced("prompt" if prefill else "decode") as trace:
            planned = self._schedule(prefill)
            logits = self._next_logits(planned, activity, trace)
            if prefill and planned[0].is_last:
                self.running.append(self.waiting.pop(0))
            sampled = self._sample(planned, logits)
            if trace is not None:
                for sequence in sampled:
                    trace.token(len(sequence.output_ids))
        activity.seconds += time.perf_counter() - began
        return sampled

    def run(self, sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
        """Steps until all are finished, yielding those that got a token; abandoned sequences give their pages back."""
        try:
            for sequence in sequences:
                self.add(sequence)
            while self.waiting or self.running:
                yield self.step()
        finally:
            for sequence in [*sequences, *self.waiting, *self.running]:
                sequence.release(self.allocator)
            self.waiting.clear()
            self.running.clear()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], one_by_one: bool = False, tap: Tap | None = None) -> torch.Tensor:
        """fp32 `[tokens, vocab]` of a text that fits the context, in pieces of the prefill size or token by token."""
        return self.head(self.hidden_states(token_ids, one_by_one, tap))

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host: the logits of some of the rows that `hidden_states` gave."""
        parts = torch.split(hidden, self.machine.prefill_tokens)
        return torch.cat([self.decoder.logits(part).cpu() for part in parts])

    @torch.inference_mode()
    def hidden_states(self, token_ids: Sequence[int], one_by_one: bool = False, tap: Tap | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` that the head reads; `tap` is shown every layer's FFN."""
        self._check_ids(token_ids)
        if len(token_ids) > self.context:
            raise UserError(f"{len(token_ids)} tokens do not fit the context of {self.context}")
        blocks = array("q")
        usual = self.machine.prefill_tokens
        if tap is not None and "gpu" not in self.machine.units:  # where a plan counts buffers, they stay as they are
            usual = PREFILL_TOKENS  # a tap is shown torch's activations
        piece = 1 if one_by_one else usual
        try:
            for _ in range(pages_for(len(token_ids))):
                blocks.append(self.allocator.take())
            self.machine.scheduler.tap = tap
            pieces = [
                self._run(list(token_ids[at : at + piece]), [Span(blocks, at, count)], self.ledger.evaluation).clone()
                for at in range(0, len(token_ids), piece)
                if (count := min(piece, len(token_ids) - at))
            ]
        finally:
            self.machine.scheduler.tap = None
            self.allocator.give_back(blocks)
        return torch.cat(pieces)

    def set_cutoffs(self, cutoffs: tuple[float, ...]) -> None:
        """Use other cutoffs from the next step on, in mode threshold: as opening anew with them, in milliseconds.

        What they cost is not known then, so the options' `loss` is None afterwards.

        Raises:
            UserError: the engine is in another mode, or they are not one number for each layer.
        """
        options = replace(self.options, cutoffs=cutoffs, loss=None)
        self.machine.set_cutoffs(cutoffs)
        self.options = options

    def set_thresholds(self, thresholds: tuple[float, ...]) -> None:
        """Name what lies above other logits from the next step on, in mode predicted; as `set_cutoffs`.

        Raises:
            UserError: the engine is in another mode, or they are not one number for each layer.
        """
        if self.options.mode != "predicted":
            raise UserError(f"mode {self.options.mode} has no predictors whose thresholds could be set")
        self.machine.set_thresholds(thresholds)

    def close(self) -> None:
        """Give back threads, memory and mappings."""
        try:
            self.machine.close()
        finally:
            self.directory.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _traced(self, kind: StepKind) -> contextlib.AbstractContextManager[Trace | None]:
        return contextlib.nullcontext() if self.trace is None else self.trace.step(kind)

    def _schedule(self, prefill: bool) -> list[Planned]:
        if prefill:
            chosen, limit = self.waiting[:1], self.machine.prefill_tokens
        else:
            chosen, limit = self.running, 1
        return [Planned(s, *s.next_span(limit, self.allocator)) for s in chosen]

    @torch.inference_mode()
    def _run(self, token_ids: list[int], parts: list[Span], activity: Activity) -> torch.Tensor:
        """fp32 `[tokens, hidden]` that the head reads, where the head is."""
        step, recorded = self._started(token_ids, parts, activity), self._recorded(len(token_ids))
        with explained(len(token_ids), self.machine.units.get("gpu")):
            return self._computed(step, activity, None) if recorded is None else recorded.run(step, activity)

    @torch.inference_mode()
    def _next_logits(self, planned: list[Planned], activity: Activity, spans: Spans | None) -> torch.Tensor:
        """fp32 `[sequences, vocab]` on the host, of those whose tokens are all computed with this step."""
        step = self._started([i for p in planned for i in p.token_ids], [p.span for p in planned], activity)
        ends = accumulate(p.span.count for p in planned)
        wanted = [end - 1 for p, end in zip(planned, ends, strict=True) if p.is_last]
        recorded = self._recorded(len(step.token_ids))
        with explained(len(step.token_ids), self.machine.units.get("gpu")):
            if recorded is not None:
                return recorded.next_logits(step, wanted, activity, spans)
            last = self._computed(step, activity, spans)[wanted]
            return self._logits(last, activity, spans) if wanted else torch.empty(0, self.directory.spec.vocab_size)

    def _logits(self, last: torch.Tensor, activity: Activity, spans: Spans | None) -> torch.Tensor:
        recorded = self.machine.recorded
        if recorded is not None and len(last) <= MAX_TOKENS:
            return recorded.logits(last, activity, spans)
        times = StepTimes()
        with times.span(self.decoder.outer.head_unit, None, "linear"):
            logits = self.decoder.logits(last)
        times.settle(activity.overlap, spans)
        return logits.cpu()

    def _recorded(self, tokens: int) -> Recorded | None:
        """The recorded step, where it serves one of so many tokens."""
        few = tokens <= MAX_TOKENS and self.machine.scheduler.tap is None
        return self.machine.recorded if few else None

    def _started(self, token_ids: list[int], parts: list[Span], activity: Activity) -> Step:
        if self.machine.closed:
            raise RuntimeError(CLOSED)
        step = Step(token_ids, parts)
        activity.tokens += len(step.token_ids)
        activity.positions += sum(s.count * (s.first_position + s.end + 1) // 2 for s in parts)
        return step

    def _computed(self, step: Step, activity: Activity, spans: Spans | None) -> torch.Tensor:
        if self.machine.lane is not None:
            self.machine.lane.check()
        scheduler, times = self.machine.scheduler, StepTimes()
        scheduler.activity, scheduler.times = activity, times
        eager = EagerOperators(self.directory.spec, step, scheduler.feed_forward)
        hidden = self.decoder.forward(eager if spans is None else TimedOperators(eager, times))
        times.settle(activity.overlap, spans)
        return hidden

    def _sample(self, planned: list[Planned], logits: torch.Tensor) -> list[TokenSequence]:
        ready = [p.sequence for p in planned if p.is_last]
        for p in planned:
            p.sequence.advance(p.span)
        for sequence, row in zip(ready, logits, strict=True):
            sequence.append(sequence.sampler.pick(row), self.context)
            if sequence.finish_reason is not None:
                self.running.remove(sequence)
                sequence.release(self.allocator)
        return ready

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        vocab = self.directory.spec.vocab_size
        if not token_ids:
            raise UserError("the prompt is empty; give at least one token")
        wrong = next((i for i in token_ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise UserError(f"token id {wrong} is out of range: the model's vocabulary has ids 0 to {vocab - 1}")
