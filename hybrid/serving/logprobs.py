"""Log probabilities of tokens, in both forms that OpenAI has."""

from __future__ import annotations

from typing import Any

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.tokenizer import Tokenizer

Json = dict[str, Any]


def chat_logprobs(sequence: TokenSequence, first: int, end: int, tokenizer: Tokenizer) -> Json:
    """Of output tokens `first` to `end`, each with its bytes and the likeliest tokens at its place."""

    def told(token_id: int, logprob: float) -> Json:
        data = tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**told(token.token_id, token.logprob), "top_logprobs": [told(*other) for other in token.alternatives]}
        for token in sequence.logprobs[first:end]
    ]
    return {"content": content, "refusal": None}


def legacy_logprobs(sequence: TokenSequence, first: int, end: int, tokenizer: Tokenizer) -> Json:
    """Of output tokens `first` to `end`, as lists; offsets are characters of the text that was generated."""

    def text(token_id: int) -> str:
        return tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    picked = sequence.logprobs[first:end]
    tokens = [text(token.token_id) for token in picked]
    ids = sequence.output_ids
    offsets = [len(_text(ids[:at], tokenizer)) for at in range(first, first + len(picked))]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in picked],
        "top_logprobs": [{text(token_id): logprob for token_id, logprob in token.alternatives} for token in picked],
        "text_offset": offsets,
    }


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens that stand in the middle of one, without the bytes of an unfinished character."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "ignore")
