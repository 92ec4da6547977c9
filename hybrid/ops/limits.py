"""How much operators hold at once, so that their memory stays bounded and can be counted beforehand. No torch."""

from __future__ import annotations

NATIVE_TOKENS = 16  # up to here operators widen no weights into memory
ROWS_AT_ONCE = 1024  # widened to fp32 together
SCORES_AT_ONCE = 1 << 24  # attention scores held together
ATTENTION_HEADS = 8  # query heads of one key-value head that a program of the GPU takes together, at most
ATTENTION_PROGRAMS = 256  # for one token, where its text is long enough: one to ten for each multiprocessor
SPLIT_KEYS = 64  # that a program takes at least, so that what programs leave stays small beside what they read


def attention_splits(heads: int, kv_heads: int, keys: int) -> int:
    """Parts that a GPU cuts a text into, of which a token may see `keys` keys; the device has no say in it."""
    programs = kv_heads * -(-heads // kv_heads // ATTENTION_HEADS)
    return max(1, min(-(-keys // SPLIT_KEYS), -(-ATTENTION_PROGRAMS // programs)))
