"""A sequence: one request's tokens, its place in the KV cache, and why it ended."""

from __future__ import annotations

import time
from array import array
from typing import Literal

from hybrid.model.kv_cache import BlockAllocator, Span
from hybrid.model.pages import pages_for
from hybrid.runtime.grammar import GrammarFactory
from hybrid.runtime.logprobs import TokenLogprob
from hybrid.runtime.output_text import OutputText
from hybrid.runtime.sampler import Picked, Sampler, SamplingParams
from hybrid.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


class Sequence:
    """The state of one request between steps. `computed` tokens of it are in the KV cache.

    index: which of the `n` texts that were asked for it is. logprobs: of each token of `output_ids`, where they were
    asked for.

    Raises:
        UserError: the grammar that was asked for cannot be used.
    """

    def __init__(self, prompt_ids: list[int], params: SamplingParams, tokenizer: Tokenizer, index: int = 0) -> None:
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        self.params = params
        self.index = index
        matcher = None if params.grammar is None else GrammarFactory.of(tokenizer).compile(params.grammar)
        self.sampler = Sampler(params, prompt_ids, matcher, index)
        self.logprobs: list[TokenLogprob] = []
        self._output = OutputText(tokenizer, prompt_ids, params.stop)
        self.finish_reason: FinishReason | None = None
        self.computed = 0
        self.blocks = array("q")
        self.began = time.perf_counter()
        self.first_token_seconds: float | None = None
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
        elif len(self.output_ids) >= self.params.max_tokens or len(self.token_ids) >= context:
            self._finish("length")

    def release(self, allocator: BlockAllocator) -> None:
        """Give the pages back, once."""
        blocks, self.blocks = self.blocks, array("q")
        allocator.give_back(blocks)

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
