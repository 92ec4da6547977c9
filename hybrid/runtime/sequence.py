"""A sequence: one request's tokens, its place in the KV cache, and why it ended."""

from __future__ import annotations

import time
from typing import Literal

from hybrid.runtime.grammar import GrammarFactory
from hybrid.runtime.logprobs import TokenLogprob
from hybrid.runtime.output_text import OutputText
from hybrid.runtime.paged_tokens import PagedTokens
from hybrid.runtime.sampler import Picked, Sampler, SamplingParams
from hybrid.tokenizer import Tokenizer
from profiler.artifacts import UserError

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Sequence(PagedTokens):
    """The state of one request between steps.

    index: which of the `n` texts that were asked for it is. logprobs: of each token of `output_ids`, where they were
    asked for. finish_reason: `stop` (end token, stop string or end of the grammar), `length`, `cancelled`, or `error`:
    then `failure` says which. queue_seconds: from its making to its first part in a step; first_token_seconds: to its
    first token.

    Raises:
        UserError: the grammar that was asked for cannot be used.
    """

    def __init__(self, prompt_ids: list[int], params: SamplingParams, tokenizer: Tokenizer, index: int = 0) -> None:
        super().__init__(prompt_ids)
        self.params = params
        self.index = index
        matcher = None if params.grammar is None else GrammarFactory.of(tokenizer).compile(params.grammar)
        self.sampler = Sampler(params, prompt_ids, matcher, index)
        self.logprobs: list[TokenLogprob] = []
        self._output = OutputText(tokenizer, prompt_ids, params.stop)
        self.finish_reason: FinishReason | None = None
        self.failure: UserError | None = None
        self.began = time.perf_counter()
        self.queue_seconds: float | None = None
        self.first_token_seconds: float | None = None
        self._eos_ids = tokenizer.eos_ids

    def join(self, now: float) -> None:
        """It is in a step, at a time of time.perf_counter."""
        if self.queue_seconds is None:
            self.queue_seconds = now - self.began

    def append(self, picked: Picked, context: int) -> None:
        """Take a sampled token, extend the text, and end the sequence where it has to end."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self.began
        grammar_ended = self.sampler.ended
        if picked.token_id in self._eos_ids and (grammar_ended or not self.params.ignore_eos):
            self._finish("stop")
            return
        self.output_ids.append(picked.token_id)
        if picked.logprob is not None:
            self.logprobs.append(TokenLogprob(picked.token_id, picked.logprob, picked.alternatives))
        if self._output.push(picked.token_id) or grammar_ended:
            self._finish("stop")
        elif len(self.output_ids) >= self.params.max_tokens or len(self) >= context:
            self._finish("length")

    def end(self, reason: FinishReason, failure: UserError | None = None) -> None:
        """Nothing comes any more."""
        self.finish_reason, self.failure = reason, failure

    @property
    def text(self) -> str:
        """The output as far as it is certain, without the stop string that ended it."""
        return self._output.text

    def visible_text(self) -> str:
        """What may be shown already: text that could still become a stop string is held back."""
        return self._output.visible()

    def visible_tokens(self) -> int:
        """How many of `output_ids` make up the visible text: a stop string's own tokens never do."""
        return self._output.visible_tokens()

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = "stop" if self._output.finish() else reason
