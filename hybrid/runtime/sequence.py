"""A sequence: one request's tokens, its place in the KV cache, and why it ended."""

from __future__ import annotations

import time
from array import array
from typing import Literal

from hybrid.model.kv_cache import BlockAllocator, Span
from hybrid.model.pages import pages_for
from hybrid.runtime.sampler import Sampler, SamplingParams
from hybrid.tokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


class Sequence:
    """The state of one request between steps. `computed` tokens of it are in the KV cache."""

    def __init__(self, prompt_ids: list[int], params: SamplingParams, tokenizer: Tokenizer) -> None:
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        self.params = params
        self.sampler = Sampler(params)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.computed = 0
        self.blocks = array("q")
        self.began = time.perf_counter()
        self.first_token_seconds: float | None = None
        self._stream: TextStream = tokenizer.stream()
        self._eos_ids = tokenizer.eos_ids

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.prompt_ids + self.output_ids

    @property
    def pending(self) -> int:
        """Tokens that are known but not yet in the KV cache."""
        return len(self.prompt_ids) + len(self.output_ids) - self.computed

    def next_span(self, limit: int, allocator: BlockAllocator) -> tuple[list[int], Span]:
        """The next tokens to compute, at most `limit`, with pages for them."""
        count = min(limit, self.pending)
        end = self.computed + count
        while len(self.blocks) < pages_for(end):
            self.blocks.append(allocator.take())
        known = len(self.prompt_ids)
        ids = self.prompt_ids[self.computed : end]
        if end > known:
            ids = ids + self.output_ids[max(self.computed - known, 0) : end - known]
        return ids, Span(self.blocks, self.computed, count)

    def advance(self, span: Span) -> None:
        """The span's tokens are in the cache now."""
        self.computed = span.end

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
        elif len(self.output_ids) >= self.params.max_tokens or len(self.token_ids) >= context:
            self._finish("length")

    def release(self, allocator: BlockAllocator) -> None:
        """Give the pages back, once."""
        blocks, self.blocks = self.blocks, array("q")
        allocator.give_back(blocks)

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
