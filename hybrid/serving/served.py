"""`ServedModel`: what requests are checked against and computed with."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid.chat_prompt import ChatFormat
from hybrid.recommended import OPENAI_DEFAULTS, sampling_defaults
from hybrid.runtime.engine import Engine
from hybrid.serving.errors import ApiError, invalid
from hybrid.tokenizer import Tokenizer

LONG_TOKEN = 16  # characters: tokens of a text have fewer on average


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

    @property
    def recommended(self) -> dict[str, Any]:
        """The defaults that are the model's own."""
        return {name: value for name, value in self.defaults.items() if value != OPENAI_DEFAULTS[name]}

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

    def encode(self, text: str, param: str) -> list[int]:
        """Token ids of a prompt; one that is too long by far is refused for its beginning, since megabytes of text
        take seconds to be cut into tokens.

        Raises:
            ApiError: it does not fit the context; `param` is the field that it came in.
            UserError: it is not valid Unicode.
        """
        self.check_length(text, param)
        return self.tokenizer.encode(text)

    def check_length(self, text: str, param: str) -> None:
        """Refuse a text whose beginning alone does not fit the context; raises as `encode`."""
        beginning = text[: self.context * LONG_TOKEN]
        if len(text) > 2 * len(beginning) and len(self.tokenizer.encode(beginning)) > self.context:
            raise self._too_long(f"{param} has {len(text):,} characters", param)

    def check_prompt(self, token_ids: list[int], param: str) -> None:
        """Refuse a prompt that leaves no room for an answer, or has ids that are none.

        Raises:
            ApiError: it names the field.
        """
        if len(token_ids) >= self.context:
            raise self._too_long(f"{param} came to {len(token_ids)}", param)
        if not token_ids:
            raise invalid(f"{param} is empty; give at least one token", param)
        if max(token_ids) >= self.vocab_size or min(token_ids) < 0:
            raise invalid(f"{param} has token ids beyond 0 to {self.vocab_size - 1}", param)

    def _too_long(self, measured: str, param: str) -> ApiError:
        return invalid(
            f"This model's maximum context length is {self.context} tokens, prompt and answer together; {measured}. "
            "Shorten it, or start the server with a larger --context",
            param,
            "context_length_exceeded",
        )
