"""`Shape`: how an endpoint writes what its sequences became, whole or piece by piece."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.served import ServedModel
from hybrid.serving.ticket import State

Json = dict[str, Any]


class Shape(ABC):
    """One answer's form.

    prefix: of ids. whole, piece: what objects call themselves. per_prompt: choices that each prompt has.
    """

    prefix: ClassVar[str]
    whole: ClassVar[str]
    piece: ClassVar[str]

    def __init__(self, served: ServedModel, model: str, per_prompt: int, with_logprobs: bool) -> None:
        self.served, self.model, self.per_prompt, self.with_logprobs = served, model, per_prompt, with_logprobs
        self._id, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def head(self, kind: str) -> Json:
        """What every object of this answer begins with."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.model,
            "system_fingerprint": self.served.fingerprint,
        }

    @abstractmethod
    def choice(self, index: int, sequence: TokenSequence, state: State) -> Json:
        """A finished sequence."""

    @abstractmethod
    def opening(self, index: int, sequence: TokenSequence) -> Json | None:
        """What a stream says of a sequence before it has text; None for nothing."""

    @abstractmethod
    def delta(self, index: int, sequence: TokenSequence, before: State, now: State) -> Json:
        """What a sequence got between two states."""

    @abstractmethod
    def ending(self, index: int, state: State) -> Json:
        """That a sequence ended, and why."""

    def usage(self, sequences: Sequence[TokenSequence], states: Sequence[State]) -> Json:
        """Tokens read and written; a prompt with several answers is counted once."""
        prompts = sequences[:: self.per_prompt]
        read, written = sum(len(s.prompt_ids) for s in prompts), sum(state.tokens for state in states)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in prompts)},
        }
