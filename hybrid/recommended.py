"""How a model's makers recommend to sample from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid.tokenizer_settings import read_optional

# Fields that a model's generation_config.json may recommend, by the range that makes sense, and OpenAI's defaults.
RANGES = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 10.0)}
OPENAI_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def sampling_defaults(directory: Path) -> dict[str, Any]:
    """What the model's generation_config.json recommends, where that makes sense; else OpenAI's defaults."""
    recommended = read_optional(directory / "generation_config.json")
    found = dict(OPENAI_DEFAULTS)
    for name, (least, most) in RANGES.items():
        value = recommended.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
            found[name] = float(value)
    top_k = recommended.get("top_k")
    if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 0:
        found["top_k"] = top_k
    return found
