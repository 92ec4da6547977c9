"""What a token is in bytes, by its name in the vocabulary: three ways to write bytes as names are in use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import decoders

BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "▁"  # how SentencePiece writes a space
BytesOf = Callable[[str], bytes]


def piece_bytes(piece: str, space: str = SPACE) -> bytes:
    """Of a piece of SentencePiece: `<0xNN>` is that byte, `▁` a space."""
    if BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(space, " ").encode()


def byte_level_bytes(token: str) -> bytes:
    """Of a token of byte-level BPE, each of whose characters stands for a byte; of any other its own bytes."""
    table = _byte_level_table()
    try:
        return bytes(table[character] for character in token)
    except KeyError:  # a token that was added by its text
        return token.encode()


def bytes_rule(decoder: decoders.Decoder | None) -> BytesOf | None:
    """The rule that a decoder of the `tokenizers` library follows; None where it is none of these.

    What it strips from the start of a whole text is still there.
    """
    steps = [] if decoder is None else list(_steps(json.loads(decoder.__getstate__())))
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return byte_level_bytes
    spaces = {step.get("replacement") for step in steps if step.get("type") == "Metaspace"}
    for step in steps:
        if step.get("type") == "Replace" and step.get("content") == " ":
            spaces.add((step.get("pattern") or {}).get("String"))
    known = {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    if len(spaces) != 1 or not kinds <= known:
        return None
    space = spaces.pop()
    return (lambda piece: piece_bytes(piece, space)) if isinstance(space, str) and space else None


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", ()) for step in _steps(part)]


@cache
def _byte_level_table() -> dict[str, int]:
    """Bytes that print stand for themselves, the others, in order, for U+0100 and on (GPT-2, `bytes_to_unicode`)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + at): byte for at, byte in enumerate(others)}
