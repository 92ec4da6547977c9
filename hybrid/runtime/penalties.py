"""What a request's own tokens, and its biases, add to logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hybrid.runtime.sampling_params import SamplingParams

Logits = npt.NDArray[np.float32]


class Penalties:
    """Repetition, frequency and presence penalties, then biases: over the tokens concerned, not the vocabulary.

    Repetition penalty as transformers defines it: over prompt and output, `l / r` where the logit is positive, else
    `l * r`. The other two as OpenAI does, over the output: `l - count * frequency - (count > 0) * presence`.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._repetition, self._presence = params.repetition_penalty, params.presence_penalty
        self._frequency = params.frequency_penalty
        self._counting = self._repetition != 1 or self._presence != 0 or self._frequency != 0
        self.wanted = self._counting or bool(params.logit_bias)
        known = sorted(set(prompt_ids)) if self._repetition != 1 else []
        self._places = {token_id: place for place, token_id in enumerate(known)}
        self._ids = np.array(known, dtype=np.int64)  # all that were seen, the first len(self._places) of them
        self._counts = np.zeros(len(known), dtype=np.float32)  # in the output
        self._bias_ids = np.fromiter(params.logit_bias, dtype=np.int64, count=len(params.logit_bias))
        self._biases = np.fromiter(params.logit_bias.values(), dtype=np.float32, count=len(params.logit_bias))

    def note(self, token_id: int) -> None:
        """The token belongs to the output."""
        if not self._counting:
            return
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = np.append(self._ids, np.zeros(room, dtype=np.int64))
            self._counts = np.append(self._counts, np.zeros(room, dtype=np.float32))
        self._ids[place] = token_id
        self._counts[place] += 1

    def apply(self, logits: Logits) -> None:
        """Change fp32 `[vocab]` in place."""
        if self._counting:
            ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
            values = logits[ids]
            if self._repetition != 1:
                values = np.where(values < 0, values * self._repetition, values / self._repetition).astype(np.float32)
            values -= counts * np.float32(self._frequency) + (counts > 0) * np.float32(self._presence)
            logits[ids] = values
        if self._biases.size:
            logits[self._bias_ids] += self._biases
