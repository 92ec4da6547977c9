"""A SentencePiece vocabulary of a GGUF file as the `tokenizer.model` that it was made from.

The fields are those of SentencePiece's `sentencepiece_model.proto`, written without the package protobuf. What the file
does not say is as Llama's model has it: BPE, no normalisation of Unicode.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import sentencepiece
from gguf import TokenType

from hybrid.checkpoint.gguf_vocabulary import MEND, Vocabulary
from profiler.artifacts import UserError

ADDED_SCORE = -1000.0  # llama.cpp's converter gives it to tokens that tokenizer_config.json or added_tokens.json adds
SPACE = "\u2581"  # how SentencePiece writes a space
PIECES, TRAINER, NORMALIZER = 1, 2, 3
BPE = 2


def added_tokens(vocabulary: Vocabulary) -> dict[int, str]:
    """Tokens with names of their own that are not of the trained model, by id; their texts have ordinary spaces."""
    named = (TokenType.CONTROL, TokenType.USER_DEFINED)
    triples = enumerate(zip(vocabulary.tokens, vocabulary.kinds, vocabulary.scores, strict=True))
    return {i: token for i, (token, kind, score) in triples if score == ADDED_SCORE and kind in named and token}


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """`tokenizer.model` of the tokens up to the last that is not added; the others follow it as added tokens.

    Raises:
        UserError: no scores, no unknown token, or SentencePiece refuses the model.
    """
    if not vocabulary.scores:
        raise UserError(f"the tokenizer has no scores, without which text cannot be split as it was trained; {MEND}")
    normal = {s for s, k in zip(vocabulary.scores, vocabulary.kinds, strict=True) if k is TokenType.NORMAL}
    if len(normal) == 1 and vocabulary.kinds.count(TokenType.NORMAL) > 1:
        raise UserError(f"the tokenizer gives all tokens the same score, which says nothing of their order; {MEND}")
    added = added_tokens(vocabulary)
    trained = [i for i, kind in enumerate(vocabulary.kinds) if i not in added and kind is not TokenType.UNUSED]
    unknown = _unknown(vocabulary)
    count = max([*trained, unknown]) + 1
    pieces = b"".join(_field(PIECES, _piece(vocabulary, i, unknown)) for i in range(count))
    model = pieces + _field(TRAINER, b"".join(_trainer(vocabulary, count, unknown)))
    model += _field(NORMALIZER, b"".join(_normalizer(vocabulary)))
    try:
        loaded = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the tokenizer is no SentencePiece model ({error}); {MEND}") from error
    if loaded.get_piece_size() != count:
        raise UserError(f"the tokenizer is no SentencePiece model: it reads {loaded.get_piece_size()} pieces; {MEND}")
    return model


def _unknown(vocabulary: Vocabulary) -> int:
    """The unknown piece of the trained model; `unknown_token_id` may be another token, which stands in for it."""
    if TokenType.UNKNOWN in vocabulary.kinds:
        return vocabulary.kinds.index(TokenType.UNKNOWN)
    if "<unk>" in vocabulary.tokens:
        return vocabulary.tokens.index("<unk>")
    if (index := vocabulary.ids.get("unknown_token_id")) is not None:
        return index
    raise UserError(f"the tokenizer has no unknown token, which SentencePiece needs; {MEND}")


def _piece(vocabulary: Vocabulary, index: int, unknown: int) -> bytes:
    kind = vocabulary.kinds[index]
    if index == unknown or kind is TokenType.UNKNOWN:  # SentencePiece has one such piece
        kind = TokenType.UNKNOWN if index == unknown else TokenType.CONTROL
    text = vocabulary.tokens[index]
    if kind is TokenType.USER_DEFINED:
        text = text.replace(" ", SPACE)
    return _field(1, text.encode()) + _float(2, vocabulary.scores[index]) + _number(3, kind)


def _trainer(vocabulary: Vocabulary, count: int, unknown: int) -> Iterator[bytes]:
    yield _number(3, BPE) + _number(4, count)
    yield _number(35, TokenType.BYTE in vocabulary.kinds)  # byte_fallback
    ids = {"unk": unknown, **{part: vocabulary.ids.get(f"{part}_token_id", -1) for part in ("bos", "eos")}}
    for at, index in enumerate((ids["unk"], ids["bos"], ids["eos"], -1)):
        yield _number(40 + at, index if index < count else -1)
        if 0 <= index < count:
            yield _field(45 + at, vocabulary.tokens[index].encode())


def _normalizer(vocabulary: Vocabulary) -> Iterator[bytes]:
    yield _field(1, b"identity")
    yield _number(3, vocabulary.flag("add_space_prefix", True))
    yield _number(4, vocabulary.flag("remove_extra_whitespaces", False))
    yield _number(5, True)  # escape_whitespaces


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
