"""A sequence: one request's tokens, its place in the KV cache, and why it ended."""

from __future__ import annotations

import time
from typing import Literal

from hybrid.runtime.paged_tokens import PagedTokens
from hybrid.runtime.sampler import Sampler, SamplingParams
from hybrid.tokenizer import TextStream, Tokenizer
from profiler.artifacts import UserError

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Sequence(PagedTokens):
    """The state of one request between steps.

    finish_reason: `stop` (end token or stop string), `length`, `cancelled`, or `error`: then `failure` says which.
    """

    def __init__(self, prompt_ids: list[int], params: SamplingParams, tokenizer: Tokenizer) -> None:
        super().__init__(prompt_ids)
        self.params = params
        self.sampler = Sampler(params)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.failure: UserError | None = None
        self.began = time.perf_counter()
        self.first_token_seconds: float | None = None
        self._stream: TextStream = tokenizer.stream()
        self._eos_ids = tokenizer.eos_ids

    def append(self, token_id: int, context: int) -> None:
        """Take a sampled token, extend the text, and end the sequence where it has to end."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self.began
        if token_id in self._eos_ids and not self.params.ignore_eos:
            self._finish("stop")
            return
        self.output_ids.append(token_id)
        self.text += self._stream.push(token_id)
        if self._cut_at_stop():
            self._finish("stop", flush=False)
        elif len(self.output_ids) >= self.params.max_tokens or len(self) >= context:
            self._finish("length")

    def end(self, reason: FinishReason, failure: UserError | None = None) -> None:
        """Nothing comes any more."""
        self.finish_reason, self.failure = reason, failure

    def visible_text(self) -> str:
        """What may be shown already: text that could still become a stop string is held back."""
        if self.finish_reason is not None:
            return self.text
        held = max((self._overlap(stop) for stop in self.params.stop), default=0)
        return self.text[: len(self.text) - held]

    def _finish(self, reason: FinishReason, flush: bool = True) -> None:
        if flush:
            self.text += self._stream.finish()
            self._cut_at_stop()
        self.finish_reason = reason

    def _cut_at_stop(self) -> bool:
        places = [at for stop in self.params.stop if (at := self.text.find(stop)) >= 0]
        if places:
            self.text = self.text[: min(places)]
        return bool(places)

    def _overlap(self, stop: str) -> int:
        lengths = range(min(len(stop), len(self.text)), 0, -1)
        return next((n for n in lengths if self.text.endswith(stop[:n])), 0)
