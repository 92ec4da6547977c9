"""How much operators hold at once, so that their memory stays bounded and can be counted beforehand. No torch."""

from __future__ import annotations

NATIVE_TOKENS = 16  # up to here operators widen no weights into memory
ROWS_AT_ONCE = 1024  # widened to fp32 together
SCORES_AT_ONCE = 1 << 24  # attention scores held together
