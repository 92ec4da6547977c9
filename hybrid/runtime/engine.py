"""The engine: sequences in, tokens out. A step is schedule, run, sample; everything else is set up once.

One caller at a time. The engine owns the units, the lane and the mapped model, and gives all of them back on `close`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from types import TracebackType

import torch

from hybrid.model.decoder import Decoder
from hybrid.model.eager import Step
from hybrid.model.kv_cache import Span
from hybrid.model.pages import pages_for
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.activity import Activity, Ledger
from hybrid.runtime.batcher import Batcher, Part, work_of
from hybrid.runtime.fresh_pages import FreshPages
from hybrid.runtime.load import EngineLoad
from hybrid.runtime.loader import Machine, Tell, load_machine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.page_pool import PagePool
from hybrid.runtime.passes import LongPass, Passes
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.sizes import PREFILL_TOKENS, page_bytes
from hybrid.runtime.tally import Firing
from hybrid.runtime.trace import StepKind, Trace
from hybrid.store.directory import ModelDirectory
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError
from profiler.tap import Tap


class Engine:
    """A model opened in a mode on a placement."""

    def __init__(self, directory: ModelDirectory, options: EngineOptions, tell: Tell | None = None) -> None:
        self.directory = directory
        self.options = replace(options, predictors=None)  # the machine has them, perhaps in memory of its own
        self.tokenizer = load_tokenizer(directory.path)
        self.machine: Machine = load_machine(directory, options, tell)
        self.context = self.machine.context
        self.pages = PagePool(self.machine.room.pages, self.machine.room.keep)
        self.decoder: Decoder = self.machine.decoder
        self._fresh = FreshPages(self.pages, [layer.pages for layer in self.decoder.layers])
        self.ledger = Ledger()
        self.trace: Trace | None = None  # that steps are added to
        self.passes = Passes(self.machine)
        piece = self.machine.prefill_tokens
        together = MAX_TOKENS if self.machine.recorded is not None else min(MAX_TOKENS, piece)
        self.batcher: Batcher[TokenSequence] = Batcher(
            self.pages, options.max_sequences, together, piece, options.pace, options.reuse_prefixes
        )
        self._long: tuple[Part[TokenSequence], LongPass] | None = None

    def add(self, sequence: TokenSequence) -> None:
        """Take a request; it is computed by the steps that follow. Raises as `check` does."""
        self.check(sequence)
        self.batcher.add(sequence)

    def cancel(self, sequence: TokenSequence) -> None:
        """Let a request go between two steps, wherever it is; nothing where it is over. Its pages are free."""
        if sequence.finish_reason is None:
            sequence.end("cancelled")
            self.batcher.remove(sequence)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs, so that a step computes something."""
        return bool(self.batcher.waiting or self.batcher.running)

    def load(self) -> EngineLoad:
        """What the engine is busy with; from any thread."""
        return EngineLoad.of(self.batcher, page_bytes(self.directory.spec, self.options.kv_format))

    def check(self, sequence: TokenSequence) -> None:
        """Refuse a request that cannot be computed; from any thread.

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
        """Advance: a token of each request that decodes, and pieces of prompts; see `hybrid.runtime.batcher`.

        Returns those that got a token, or ended: one whose logits are not finite numbers ends with a `failure`, and
        the others go on. After an error of the whole step it can be tried again.

        Raises:
            UserError: the GPU has no memory left, or failed.
        """
        plan, began = self.batcher.plan(), time.perf_counter()
        sampled: list[TokenSequence] = []
        for part in chain(*plan.passes, () if plan.long is None else [plan.long]):
            part.request.join(began)
        prompts = plan.long is not None or not all(part.decodes for parts in plan.passes for part in parts)
        with self._traced("prompt" if prompts else "decode") as trace:
            if plan.long is not None:
                began = self._advance(plan.long, sampled, plan.seconds, trace, began)
            for parts in plan.passes:
                began = self._pass(parts, sampled, trace, began)
                self._fresh.step(sum(part.count for part in parts))
            if trace is not None:
                for sequence in sampled:
                    trace.token(len(sequence.output_ids))
        self.machine.settle_memory()
        self.machine.publish()
        return sampled

    def run(self, sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
        """Steps until all of these are finished, yielding those that got a token; who abandons it cancels them.

        Raises:
            UserError: as `step`, or one of these sequences failed.
        """
        mine = {id(sequence) for sequence in sequences}
        try:
            for sequence in sequences:
                self.add(sequence)
            while any(sequence.finish_reason is None for sequence in sequences):
                advanced = [sequence for sequence in self.step() if id(sequence) in mine]
                failure = next((s.failure for s in advanced if s.failure is not None), None)
                if failure is not None:
                    raise failure
                yield advanced
        finally:
            for sequence in sequences:
                self.cancel(sequence)

    def logits(self, token_ids: Sequence[int], one_by_one: bool = False, tap: Tap | None = None) -> torch.Tensor:
        """fp32 `[tokens, vocab]` of a text that fits the context, in pieces of the prefill size or token by token."""
        return self.head(self.hidden_states(token_ids, one_by_one, tap))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, vocab]` on the host: the logits of some of the rows that `hidden_states` gave."""
        return self.passes.head(hidden)

    @torch.inference_mode()
    def hidden_states(self, token_ids: Sequence[int], one_by_one: bool = False, tap: Tap | None = None) -> torch.Tensor:
        """fp32 `[tokens, hidden]` that the head reads; `tap` is shown every layer's FFN."""
        self._check_ids(token_ids)
        if len(token_ids) > self.context:
            raise UserError(f"{len(token_ids)} tokens do not fit the context of {self.context}")
        usual = self.machine.prefill_tokens
        if tap is not None and "gpu" not in self.machine.units:  # where a plan counts buffers, they stay as they are
            usual = PREFILL_TOKENS  # a tap is shown torch's activations
        piece = 1 if one_by_one else usual
        blocks = self.pages.take_many(pages_for(len(token_ids)))
        try:
            self.machine.scheduler.tap = tap
            pieces = []
            for at in range(0, len(token_ids), piece):
                ids = list(token_ids[at : at + piece])
                step = Step(ids, [Span(blocks, at, len(ids))])
                pieces.append(self.passes.hidden(step, self.ledger.evaluation).clone())
                self.machine.settle_memory()
        finally:
            self.machine.scheduler.tap = None
            self.pages.give_back(blocks)
            self.machine.publish()
        return torch.cat(pieces)

    def set_cutoffs(self, cutoffs: tuple[float, ...]) -> None:
        """Use other cutoffs from the next step on, in mode threshold: as opening anew with them, in milliseconds.

        What they cost is not known then, so the options' `loss` is None afterwards.

        Raises:
            UserError: the engine is in another mode, or they are not one number for each layer.
        """
        options = replace(self.options, cutoffs=cutoffs, loss=None)
        self.machine.set_cutoffs(cutoffs)
        self.pages.forget()
        self.options = options

    def set_thresholds(self, thresholds: tuple[float, ...]) -> None:
        """Name what lies above other logits from the next step on, in mode predicted; as `set_cutoffs`.

        Raises:
            UserError: the engine is in another mode, or they are not one number for each layer.
        """
        if self.options.mode != "predicted":
            raise UserError(f"mode {self.options.mode} has no predictors whose thresholds could be set")
        self.machine.set_thresholds(thresholds)
        self.pages.forget()

    def firing(self) -> Firing:
        """Which neurons fired since the engine was opened, as of the end of the last step; from any thread.

        Raises:
            UserError: the engine was opened without `EngineOptions.tally`.
        """
        return self.machine.firing()

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

    def _pass(
        self, parts: list[Part[TokenSequence]], sampled: list[TokenSequence], trace: Trace | None, began: float
    ) -> float:
        """Compute parts together; when that was done. Its time counts from when what was before was done."""
        step, activity = _step(parts), Activity()
        ends = accumulate(part.count for part in parts)
        wanted = [end - 1 for part, end in zip(parts, ends, strict=True) if part.is_last]
        logits = self.passes.next_logits(step, wanted, activity, trace)
        self._take(parts, logits, sampled)
        ended = time.perf_counter()
        activity.seconds = ended - began
        if trace is None:  # which slows a step down
            self.batcher.costs.observe(work_of(parts), activity.seconds)
        prompts = _step([part for part in parts if not part.decodes])
        self.ledger.divide(activity, len(prompts.token_ids), prompts.attended)
        return ended

    def _advance(
        self,
        part: Part[TokenSequence],
        sampled: list[TokenSequence],
        seconds: float | None,
        trace: Trace | None,
        began: float,
    ) -> float:
        """Go on with a piece of a prompt that takes a pass of its own; when that was done."""
        if self._long is None or self._long[0] is not part:
            self._long = part, self.passes.begin(_step([part]), self.ledger.prefill, trace)
        try:
            logits = self.passes.advance(self._long[1], seconds, part.is_last)
        except BaseException:
            self._long = None
            raise
        if logits is not None:
            self._long = None
            self._take([part], logits, sampled)
        ended = time.perf_counter()
        self.ledger.prefill.seconds += ended - began
        return ended

    def _take(self, parts: list[Part[TokenSequence]], logits: torch.Tensor, sampled: list[TokenSequence]) -> None:
        """Parts are computed: a token follows for those of which nothing else is left."""
        rows = iter(logits)
        for part in parts:
            sequence = part.request
            if part.is_last:
                self._sample(sequence, next(rows))
                sampled.append(sequence)
            self.batcher.done(part)
            if sequence.failure is not None:
                self.pages.forget(sequence.blocks)  # what is no number there would be found again
            if sequence.finish_reason is not None:
                self.batcher.remove(sequence)

    def _sample(self, sequence: TokenSequence, logits: torch.Tensor) -> None:
        try:
            sequence.append(sequence.sampler.pick(logits), self.context)
        except UserError as error:
            sequence.end("error", error)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        vocab = self.directory.spec.vocab_size
        if not token_ids:
            raise UserError("the prompt is empty; give at least one token")
        wrong = next((i for i in token_ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise UserError(f"token id {wrong} is out of range: the model's vocabulary has ids 0 to {vocab - 1}")


def _step(parts: Sequence[Part[TokenSequence]]) -> Step:
    ids = [i for part in parts for i in part.request.ids(part.first, part.count)]
    return Step(ids, [Span(part.request.blocks, part.first, part.count) for part in parts])
