"""The vocabulary in the metadata of a GGUF file, checked: its tokens, their kinds, and their parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from hybrid.checkpoint.gguf_header import GgufHeader
from profiler.artifacts import UserError

PREFIX = "tokenizer.ggml."
PARTS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
ENDINGS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message to a tool
MEND = "give the folder with the original tokenizer files: --tokenizer FOLDER"


@dataclass(frozen=True)
class Vocabulary:
    """tokens, kinds: by id. scores: of SentencePiece; merges: of byte-level BPE, in order. ids: of the tokens that have
    a part to play, by its key in the metadata. settings: the other keys of the tokenizer.
    """

    tokens: tuple[str, ...]
    kinds: tuple[TokenType, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    settings: Mapping[str, Any]

    def flag(self, key: str, default: bool) -> bool:
        """A setting that is true or false."""
        value = self.settings.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{PREFIX}{key} is {value!r:.60}; true or false is expected: {MEND}")
        return value

    def name(self, part: str) -> str | None:
        """What the token that is `bos`, `eos`, `unk` or `pad` is called, where there is one."""
        index = self.ids.get(PARTS[part])
        return None if index is None else self.tokens[index]


def read_vocabulary(header: GgufHeader, rows: int) -> Vocabulary:
    """The vocabulary of a model whose embeddings have so many rows.

    Raises:
        UserError: lists of different lengths, tokens without a row or that are no text, ids out of range.
    """
    settings = {k.removeprefix(PREFIX): v for k, v in header.metadata.items() if k.startswith(PREFIX)}
    tokens = _texts(header, "tokens", settings.pop("tokens", None))
    if not 0 < len(tokens) <= rows:
        raise UserError(f"{header.path} names {len(tokens)} tokens, and its embeddings have {rows} rows; {MEND}")
    codes = settings.pop("token_type", [int(TokenType.NORMAL)] * len(tokens))
    scores = settings.pop("scores", [])
    merges = _texts(header, "merges", settings.pop("merges", []))
    if not isinstance(codes, list) or len(codes) != len(tokens):
        raise UserError(f"{header.path} has no kind for each of its {len(tokens)} tokens; {MEND}")
    if not isinstance(scores, list) or len(scores) not in (0, len(tokens)):
        raise UserError(f"{header.path} has no score for each of its {len(tokens)} tokens; {MEND}")
    if not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise UserError(f"{header.path} has scores of tokens that are no numbers; {MEND}")
    try:
        kinds = tuple(TokenType(code) for code in codes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{header.path} has tokens of a kind that there is not ({error}); {MEND}") from error
    ids: dict[str, int] = {}
    for key, value in settings.items():
        if key.endswith("_token_id"):
            if type(value) is not int or not 0 <= value < len(tokens):
                raise UserError(f"{header.path}: {PREFIX}{key} is {value!r:.60}, which no token is; {MEND}")
            ids[key] = value
    return Vocabulary(tokens, kinds, tuple(scores), merges, ids, settings)


def _texts(header: GgufHeader, key: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, bytes) for value in values):
        raise UserError(f"{header.path}: {PREFIX}{key} is not a list of texts; {MEND}")
    try:
        return tuple(value.decode() for value in values)
    except UnicodeDecodeError as error:
        raise UserError(f"{header.path}: {PREFIX}{key} has one that is not UTF-8; {MEND}") from error
