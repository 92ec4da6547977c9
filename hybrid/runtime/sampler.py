"""`Sampler`: one token from one row of logits, with a random stream that belongs to one request."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hybrid.ops.cpu import greatest
from profiler.artifacts import UserError

NOT_FINITE = (
    "the model's logits are not finite numbers: its files are damaged or its weights overflow; "
    "pack the checkpoint again, and compare with --mode dense"
)
Logits = torch.Tensor | npt.NDArray[np.floating]


class NumericalError(UserError):
    """The model computed something that is not a number."""


@dataclass(frozen=True)
class SamplingParams:
    """How a text is continued.

    max_tokens: at most so many new tokens. temperature: 0 takes the likeliest token; 1 samples the model's own
    distribution. top_k: only the k likeliest tokens; 0 is all. top_p: only the fewest tokens whose probabilities reach
    p (nucleus sampling, Holtzman et al., 2020). seed: repeats a text; None draws another one each time. stop: strings
    that end the text and are not part of it. ignore_eos: go on after an end-of-sequence token.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require_whole("max_tokens", self.max_tokens, 1)
        _require_whole("top_k", self.top_k, 0)
        if self.seed is not None:
            _require_whole("seed", self.seed, 0)
        if not (_is_number(self.temperature) and 0 <= self.temperature <= 100):
            raise UserError(
                f"temperature is {self.temperature!r}; a number from 0 (always the likeliest) to 100 is meant"
            )
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p is {self.top_p!r}; a number above 0 and at most 1 is meant")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise UserError(f"stop is {self.stop!r}; a tuple of strings, none of them empty, is meant")


class Sampler:
    """Picks tokens of one request. Draws depend on its seed and its own logits, never on the rest of a batch."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params

    @functools.cached_property
    def _random(self) -> np.random.Generator:
        """Made for the first draw: greedy decoding has none, and numpy loads generators only when asked for them."""
        return np.random.Generator(np.random.Philox(self.params.seed))

    def pick(self, logits: Logits) -> int:
        """A token id from `[vocab]` logits. Of equally likely tokens, greedy decoding takes the lowest id.

        Raises:
            NumericalError: a logit is NaN or infinite.
        """
        if self.params.temperature == 0 and isinstance(logits, torch.Tensor):
            place = greatest(logits.float().cpu().contiguous())
            if place is None:
                raise NumericalError(NOT_FINITE)
            return place
        values = np.asarray(logits.float().cpu() if isinstance(logits, torch.Tensor) else logits, dtype=np.float64)
        assert values.ndim == 1, "one row of logits"
        assert values.size, "at least one token"
        if not np.isfinite(values).all():
            raise NumericalError(NOT_FINITE)
        if self.params.temperature == 0:
            return int(values.argmax())
        ids, probabilities = self.distribution(values)
        cumulative = probabilities.cumsum()
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])

    def distribution(self, logits: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Token ids that may be drawn and their probabilities: temperature, then top_k, then top_p. Ties go by id.

        With a cut (`top_k` or `top_p`) the likeliest token stands first, without one the ids are in order.
        """
        scaled = (logits - logits.max()) / max(self.params.temperature, np.finfo(np.float32).tiny)
        weights = np.exp(scaled)
        ids = np.arange(logits.size)
        top_k, top_p = self.params.top_k, self.params.top_p
        if 0 < top_k < ids.size:
            smallest = np.partition(logits, -top_k)[-top_k]
            ids = ids[logits >= smallest]
            ids = ids[np.argsort(-logits[ids], kind="stable")][:top_k]
        probabilities = weights[ids] / weights[ids].sum()
        if top_p < 1:
            # All tokens below (1 - p) / n weigh less than 1 - p together, so that the nucleus needs none of them.
            kept = probabilities >= (1 - top_p) / ids.size
            ids, probabilities = ids[kept], probabilities[kept]
            order = np.argsort(-probabilities, kind="stable")
            count = int(np.searchsorted(probabilities[order].cumsum(), top_p)) + 1
            ids, probabilities = ids[order[:count]], probabilities[order[:count]]
            probabilities = probabilities / probabilities.sum()
        return ids, probabilities


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_whole(name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise UserError(f"{name} is {value!r}; a whole number from {lowest} up is meant")
