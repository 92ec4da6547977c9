"""`ServedModel`: what requests are checked against and computed with."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.chat_prompt import ChatFormat
from hybrid.runtime.engine import Engine
from hybrid.serving.errors import ApiError, invalid
from hybrid.tokenizer import Tokenizer
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


@dataclass(frozen=True)
class ServedModel:
    """A model under its names.

    context: tokens of a prompt and its answer together. defaults: of sampling, where a request says nothing: what the
    model's makers recommend, else OpenAI's. fingerprint: changes with what answers depend on.
    """

    names: tuple[str, ...]
    tokenizer: Tokenizer
    chat: ChatFormat
    context: int
    vocab_size: int
    defaults: Mapping[str, Any]
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: Engine, names: tuple[str, ...]) -> ServedModel:
        """That of an engine.

        Raises:
            UserError: its chat template or generation_config.json cannot be read.
        """
        directory, options = engine.directory, engine.options
        parts = (directory.manifest.pack_digest, options.mode, options.kv_format, str(options.cutoffs))
        return cls(
            names=names,
            tokenizer=engine.tokenizer,
            chat=ChatFormat.of(directory.path),
            context=engine.context,
            vocab_size=directory.spec.vocab_size,
            defaults=sampling_defaults(directory.path),
            fingerprint="fp_" + hashlib.sha256("/".join(parts).encode()).hexdigest()[:12],
        )

    def require(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            ApiError: there is no such model here.
        """
        if name not in self.names:
            known = ", ".join(repr(one) for one in self.names)
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist; this server has {known}",
                param="model",
                code="model_not_found",
            )

    def check_prompt(self, token_ids: list[int], param: str) -> None:
        """Refuse a prompt that leaves no room for an answer, or has ids that are none.

        Raises:
            ApiError: it names the field.
        """
        if len(token_ids) >= self.context:
            raise invalid(
                f"This model's maximum context length is {self.context} tokens, prompt and answer together; "
                f"{param} came to {len(token_ids)}. Shorten it, or start the server with a larger --context",
                param,
                "context_length_exceeded",
            )
        if not token_ids:
            raise invalid(f"{param} is empty; give at least one token", param)
        if max(token_ids) >= self.vocab_size or min(token_ids) < 0:
            raise invalid(f"{param} has token ids beyond 0 to {self.vocab_size - 1}", param)


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
