"""Pages of keys and values as numbers: how many tokens one holds, in which formats. No torch, for who counts bytes."""

from __future__ import annotations

PAGE_TOKENS = 16
KV_FORMATS = {"f16": 2, "bf16": 2, "f32": 4}  # bytes of a number


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)
