"""Damage: to bytes, to JSON values, to safetensors files. All of it follows from a `random.Random`."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 53) + 1)
HUGE = ((1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**30, -(1 << 63), 10**400)
FLOATS = (0.5, -0.0, 1e-300, 1e300, 3.4e38, 1e39, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "\0",
    "x" * 5000,
    "../../../etc/passwd",
    "/dev/zero",
    "\ud800",
    "ä€😀",
    "%s%n",
    "{{ 1 }}",
    "null",
    "1e999",
)
MARKERS = ("f32", "bf16", "q4_0", "gpu", "cpu", "flash", "ram", "relu", "silu", "exact", "predicted", "<s>", "</s>")


def damaged_bytes(data: bytes, rng: Random) -> bytes:
    """One to four kinds of damage, near the beginning more often than not, where headers are."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(BYTE_DAMAGE)(bytearray(data), rng)
    return data


def _place(data: bytearray, rng: Random) -> int:
    end = len(data)
    return rng.randrange(min(end, rng.choice((16, 64, 512, 4096, end or 1)))) if end else 0


def _bit(data: bytearray, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 30))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _byte(data: bytearray, rng: Random) -> bytes:
    if data:
        data[_place(data, rng)] = rng.choice((0, 255, 127, 128, 10, 34, 92, 123, 125, rng.randrange(256)))
    return bytes(data)


def _cut(data: bytearray, rng: Random) -> bytes:
    return bytes(data[: rng.choice((0, 1, 7, 8, len(data) // 2, max(0, len(data) - 1), _place(data, rng)))])


def _grown(data: bytearray, rng: Random) -> bytes:
    return bytes(data) + rng.choice((b"\0", b"\n", b"{}", bytes(4096), rng.randbytes(100), bytes(data[:1000])))


def _removed(data: bytearray, rng: Random) -> bytes:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 8, 64, 1000))]
    return bytes(data)


def _repeated(data: bytearray, rng: Random) -> bytes:
    at = _place(data, rng)
    part = data[at : at + rng.choice((1, 8, 100))]
    return bytes(data[:at] + part * rng.choice((2, 3, 500)) + data[at:])


def _blank(data: bytearray, rng: Random) -> bytes:
    at, length = _place(data, rng), rng.choice((1, 4, 8, 64, 1024))
    length = min(length, len(data) - at)
    data[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return bytes(data)


def _number(data: bytearray, rng: Random) -> bytes:
    at, form = _place(data, rng), rng.choice(("<I", "<Q", "<H", ">I", ">Q"))
    value = rng.choice((*NUMBERS, *HUGE[:4]))
    packed = struct.pack(form, value % (1 << (8 * struct.calcsize(form))))
    data[at : at + len(packed)] = packed
    return bytes(data)


def _moved(data: bytearray, rng: Random) -> bytes:
    at, to = _place(data, rng), _place(data, rng)
    part = data[at : at + 32]
    data[to : to + len(part)] = part
    return bytes(data)


BYTE_DAMAGE: tuple[Callable[[bytearray, Random], bytes], ...] = (
    _bit,
    _byte,
    _cut,
    _grown,
    _removed,
    _repeated,
    _blank,
    _number,
    _moved,
)


def strange(rng: Random, old: Any = None) -> Any:
    """A value for the place of another: often of the same type and a little off."""
    if isinstance(old, bool) and rng.random() < 0.5:
        return not old
    if isinstance(old, (int, float)) and rng.random() < 0.6:
        return rng.choice((old + 1, old - 1, -old, old * 2, old / 2, old * 1000, old * 10**9, float(old), str(old)))
    if isinstance(old, str) and rng.random() < 0.4:
        return rng.choice((old + "x", old[:-1], old.upper(), old * 100, [old], {"content": old}))
    if isinstance(old, list) and rng.random() < 0.5:
        return rng.choice(
            (old[:-1], old + old[-1:], old * 50, old[::-1], [old], sorted(old, key=lambda item: type(item).__name__))
        )
    return rng.choice(
        (
            None,
            True,
            False,
            [],
            {},
            rng.choice(NUMBERS),
            rng.choice(HUGE),
            rng.choice(FLOATS),
            rng.choice(TEXTS),
            rng.choice(MARKERS),
            [rng.choice(NUMBERS)] * rng.choice((1, 3, 1000)),
            _deep(rng.choice((10, 100, 900, 3000))),
            {rng.choice(TEXTS): rng.choice(NUMBERS)},
        )
    )


def _deep(levels: int) -> Any:
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def damaged_json(value: Any, rng: Random) -> Any:
    """The value with one to three places changed, removed, added or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            value = _damaged_once(value, rng)
        except (OverflowError, RecursionError):  # it is damaged enough already to be in its own way
            break
    return value


def _places(value: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < limit:
        at = waiting.pop()
        entries = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, child in entries:
            found.append((at, key))
            if isinstance(child, (dict, list)):
                waiting.append(child)
    return found


def _damaged_once(value: Any, rng: Random) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.02:
        return strange(rng, value)
    outer = [place for place in places if place[0] is value]
    holder, key = rng.choice(outer if outer and rng.random() < 0.4 else places)
    what = rng.random()
    if what < 0.6:
        holder[key] = strange(rng, holder[key])
    elif what < 0.8:
        del holder[key]
    elif what < 0.9 and isinstance(holder, dict):
        holder[rng.choice(("extra", "", str(key) + "_", "__class__", "\0"))] = strange(rng, holder[key])
    else:
        other_holder, other = rng.choice(places)
        try:
            holder[key] = copy.deepcopy(other_holder[other])
        except (KeyError, IndexError):
            holder[key] = None
    return value


def json_bytes(value: Any) -> bytes:
    """JSON of whatever a damaged value holds, NaN and lone surrogates too; what nests too deeply is written by hand."""
    try:
        return json.dumps(value, ensure_ascii=True).encode()
    except RecursionError:
        return b"[" * 100_000


def damaged_json_bytes(data: bytes, rng: Random) -> bytes:
    """A JSON file: damaged as a value mostly, else as bytes."""
    if rng.random() < 0.2:
        return damaged_bytes(data, rng)
    return json_bytes(damaged_json(json.loads(data), rng))


def damaged_safetensors(data: bytes, rng: Random) -> bytes:
    """Its header as JSON, what artifacts keep in the metadata, or its values; else any of its bytes."""
    kind = rng.random()
    if kind < 0.25:
        return damaged_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    metadata = header.get("__metadata__", {})
    inner = metadata.get("kind")
    if kind < 0.45:
        at, word = (
            rng.randrange(max(1, len(body))),
            rng.choice((b"\0\0\xc0\x7f", b"\0\x7e\0\x7e", b"\xff" * 4, bytes(4))),
        )
        count = rng.choice((1, 1, 16, 1000))
        body[at - at % 4 : at - at % 4 + 4 * count] = word * count
        return _joined(header, bytes(body[: len(data) - 8 - length]))
    if kind < 0.7 and isinstance(inner, str) and inner in metadata:
        metadata[inner] = json_bytes(damaged_json(json.loads(metadata[inner]), rng)).decode()
        return _joined(header, bytes(body))
    return _joined(damaged_json(header, rng), bytes(body))


def _joined(header: Any, body: bytes) -> bytes:
    text = json_bytes(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body
