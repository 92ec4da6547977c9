"""A request's tokens, and how far they are in the pages of the KV cache. No torch."""

from __future__ import annotations

import hashlib
from array import array

from hybrid.model.pages import PAGE_TOKENS

DIGEST_BYTES = 32  # so that no two texts that ever meet have the same one


class PagedTokens:
    """Prompt and output; keys and values of the first `computed` tokens are in `blocks`, int64 `[pages]`.

    cached_tokens: of the prompt, found in pages that were computed before. recomputed: its pages were given up once, so
    that it is computed anew up to where it was.
    """

    def __init__(self, prompt_ids: list[int]) -> None:
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        self.computed = 0
        self.blocks = array("q")
        self.cached_tokens = 0
        self.recomputed = False
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.prompt_ids + self.output_ids

    @property
    def pending(self) -> int:
        """Tokens that are known but not yet in the KV cache."""
        return len(self) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last token, which was sampled, are in the cache."""
        return bool(self.output_ids) and self.pending == 1

    def ids(self, first: int, count: int) -> list[int]:
        """Some tokens that are known, one after the other."""
        known, end = len(self.prompt_ids), first + count
        if first >= known:
            return self.output_ids[first - known : end - known]
        return self.prompt_ids[first:end] + self.output_ids[: max(0, end - known)]

    def digest(self, page: int) -> bytes:
        """Of all tokens up to the end of a page, which are known."""
        while len(self._digests) <= page:
            before = self._digests[-1] if self._digests else b""
            tokens = array("q", self.ids(len(self._digests) * PAGE_TOKENS, PAGE_TOKENS))
            assert len(tokens) == PAGE_TOKENS, "only full pages have a digest"
            self._digests.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=DIGEST_BYTES).digest())
        return self._digests[page]
