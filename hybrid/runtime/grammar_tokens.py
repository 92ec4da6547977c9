"""A model's vocabulary as llguidance asks for it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property

from hybrid.tokenizer import Tokenizer


class GrammarTokens:
    """Tokens as bytes, which of them are special, and how bytes that a grammar forces are written in tokens.

    Where the tokenizer has no token that ends a text, one is made up behind all others.
    """

    is_tokenizer_wrapper = True  # as llguidance knows what it may take

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # a factory is kept as long as its tokenizer, and no longer
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        ends = sorted(i for i in tokenizer.eos_ids if i < len(self.tokens))
        if not ends:
            ends = [len(self.tokens)]
            self.tokens.append(b"</s>")
        self.eos_token_ids = ends
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        silent = {i for i in range(tokenizer.vocab_size) if tokenizer.is_silent(i)}
        self.special_token_ids = sorted(silent | set(ends))

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids whose bytes are exactly the text's, as the tokenizer would write it within a text if it can."""
        data = text.encode() if isinstance(text, str) else text
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            for lead in ("", "\n"):  # after a new line SentencePiece puts no space before a word
                ids = tokenizer.encode(lead + data.decode(errors="replace"), add_bos=False)
                if (found := self._ending(ids, data)) is not None:
                    return found
        return self._greedy(data)

    def _ending(self, ids: Sequence[int], data: bytes) -> list[int] | None:
        """The last of the ids, whose bytes are the data."""
        rest, at = data, len(ids)
        while rest:
            at -= 1
            if at < 0 or ids[at] in self._special or not (end := self.tokens[ids[at]]) or not rest.endswith(end):
                return None
            rest = rest[: -len(end)]
        return list(ids[at:])

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token each time; what no token begins is left out with all that follows."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            lengths = range(min(self._longest, len(data) - at), 0, -1)
            length = next((n for n in lengths if data[at : at + n] in self._by_bytes), None)
            if length is None:
                break
            ids.append(self._by_bytes[data[at : at + length]])
            at += length
        return ids

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.special_token_ids)

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens) if token and i not in self._special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=1)
