"""What an engine is busy with, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.runtime.batcher import Batcher


@dataclass(frozen=True)
class EngineLoad:
    """What an engine is busy with.

    waiting: requests that are not in steps yet, or no more for want of pages; running: those that are; slots: of which
    there are at most so many. pages_used: of the KV cache; pages_cached: that nobody uses, kept for who begins alike;
    page_bytes: of a page in all layers. Sums since the engine was opened: preemptions (requests that gave up their
    pages for a while), prompt_tokens of all requests, and cached_prompt_tokens, which were found in pages.
    """

    waiting: int
    running: int
    slots: int
    pages_used: int
    pages_cached: int
    pages_total: int
    page_bytes: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int

    @staticmethod
    def of(batcher: Batcher[Any], page_bytes: int) -> EngineLoad:
        """Of the requests and pages of a batcher, as they are now; from any thread."""
        pages = batcher.pool
        return EngineLoad(
            waiting=len(batcher.waiting),
            running=len(batcher.running),
            slots=batcher.slots,
            pages_used=pages.used,
            pages_cached=pages.cached,
            pages_total=pages.total,
            page_bytes=page_bytes,
            preemptions=batcher.preemptions,
            prompt_tokens=batcher.prompt_tokens_seen,
            cached_prompt_tokens=batcher.prompt_tokens_cached,
        )
