"""Log probabilities of tokens, in both forms that OpenAI has."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from hybrid.runtime.logprobs import TokenLogprob
from hybrid.tokenizer import Tokenizer

Json = dict[str, Any]


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> Json:
    """Each token with its bytes, and the likeliest tokens at its place."""

    def told(token_id: int, logprob: float) -> Json:
        data = tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**told(token.token_id, token.logprob), "top_logprobs": [told(*other) for other in token.alternatives]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class TextOffsets:
    """Where each token of one text begins, in characters; asked for token by token, in order."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def next(self, token: bytes) -> int:
        """The place of the token that comes next."""
        begin = self._length
        self._length += len(self._decoder.decode(token))
        return begin


def legacy_logprobs(tokens: Sequence[TokenLogprob], offsets: TextOffsets, tokenizer: Tokenizer) -> Json:
    """The tokens' parts as lists; offsets are characters of the text that was generated.

    The token that was taken is among the likeliest ones, even if it is not one of them.
    """

    def text(token_id: int) -> str:
        return tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    return {
        "tokens": [text(token.token_id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {text(token_id): logprob for token_id, logprob in (*token.alternatives, token[:2])} for token in tokens
        ],
        "text_offset": [offsets.next(tokenizer.token_bytes(token.token_id)) for token in tokens],
    }
