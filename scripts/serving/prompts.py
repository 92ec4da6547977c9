"""Prompts of random tokens, never the same twice: no page of one serves another, and each names other neurons."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from hybrid.tokenizer import Tokenizer


class Prompts:
    """Texts of so many tokens for this engine, ids of so many for either, and texts for a peer.

    The peer's synthetic vocabulary has pieces that no text is made of, so that its tokens are bytes.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, seed: int = 0) -> None:
        self._tokenizer, self._vocabulary, self._random = tokenizer, vocabulary, random.Random(seed)
        self._words = [text for text in self._pieces() if text.isascii() and text.isalpha()]

    def ids(self, tokens: int) -> list[int]:
        """Any ids of the vocabulary but the special ones at its beginning."""
        return [self._random.randrange(300 if self._vocabulary > 1000 else 3, self._vocabulary) for _ in range(tokens)]

    def text(self, tokens: int) -> str:
        """Words that come to so many tokens, or to a few more."""
        words = [self._random.choice(self._words)]
        while len(self._tokenizer.encode(" ".join(words))) < tokens:
            words.append(self._random.choice(self._words))
        return " ".join(words)

    def letters(self, count: int) -> str:
        """So many letters."""
        return "".join(self._random.choices(string.ascii_letters, k=count))

    def _pieces(self) -> Iterator[str]:
        for _ in range(4000):
            yield self._tokenizer.decode([self._random.randrange(3, self._tokenizer.vocab_size)]).strip()
