"""The texts that ship with hybrid, to profile any model on where no other text is at hand. No torch.

scripts/broad_texts.py makes them; hybrid/texts/NOTICE says what they are and whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from profiler.artifacts import UserError

TEXTS = Path(__file__).resolve().parent.parent / "texts"
SHIPPED_TOKENS = 32_768  # of them, unless more or fewer are asked for


def broad_texts() -> list[Path]:
    """Files of several kinds of text, each a domain.

    Raises:
        UserError: the package lacks them.
    """
    found = sorted(TEXTS.glob("*.jsonl"))
    if not found:
        raise UserError(f"the texts to profile on are missing from {TEXTS}; install hybrid-inference anew")
    return found


def described(paths: Sequence[Path], tokens: int) -> str:
    """What a user should know who named no text."""
    kinds = ", ".join(path.name for path in paths)
    return (
        f"no --text, so at most {tokens:,} tokens of texts that come with hybrid are used ({kinds}); which neurons "
        "fire depends on the text: give some of the kind that the model is for"
    )
