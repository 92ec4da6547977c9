"""`Sampler`: one token from one row of logits, with a random stream that belongs to one request."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hybrid.ops.cpu import greatest
from hybrid.runtime.distribution import draw, kept_tokens, scratch
from hybrid.runtime.grammar import Matcher
from hybrid.runtime.logprobs import token_logprob
from hybrid.runtime.penalties import Penalties
from hybrid.runtime.sampling_params import SamplingParams
from profiler.artifacts import UserError

__all__ = ["NumericalError", "Picked", "Sampler", "SamplingParams"]

NOT_FINITE = (
    "the model's logits are not finite numbers: its files are damaged or its weights overflow; "
    "pack the checkpoint again, and compare with --mode dense"
)
Logits = npt.NDArray[np.float32]


class NumericalError(UserError):
    """The model computed something that is not a number."""


class Picked(NamedTuple):
    """A token, and where logprobs were asked for what `TokenLogprob` says of it."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Picks tokens of one sequence. Draws depend on its seed and its own logits, never on the rest of a batch.

    Args:
        params: what was asked for.
        prompt_ids: what the repetition penalty counts as seen.
        matcher: of the grammar, at its beginning.
        index: which of `n` texts of the same seed it is; each has its own random numbers, the first those of n = 1.

    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        matcher: Matcher | None = None,
        index: int = 0,
    ) -> None:
        self.params = params
        self._prompt_ids, self._matcher, self._index = prompt_ids, matcher, index

    @property
    def ended(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.ended

    def pick(self, row: torch.Tensor | npt.NDArray[np.floating]) -> Picked:
        """A token for `[vocab]` logits, which are left as they are. Of equally likely ones, greedy takes the lowest id.

        Raises:
            NumericalError: a logit is NaN or infinite.
            GrammarError: no token may follow, or finding out took more than is allowed.
        """
        tensor = torch.from_numpy(row) if isinstance(row, np.ndarray) else row
        tensor = tensor.float().cpu().contiguous()
        likeliest = greatest(tensor)
        if likeliest is None:
            raise NumericalError(NOT_FINITE)
        logits: Logits = tensor.numpy()
        token_id = likeliest if self._is_plain else self._choose(logits)
        if self._penalties.wanted:
            self._penalties.note(token_id)
        if self._matcher is not None:
            self._matcher.take(token_id)
        if self.params.logprobs is None:
            return Picked(token_id)
        return Picked(*token_logprob(logits, token_id, self.params.logprobs))

    def distribution(self, logits: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Token ids that may be drawn at a temperature above 0, and their probabilities."""
        ids, adjusted = self._adjusted(np.asarray(logits, dtype=np.float32))
        places, weights = kept_tokens(adjusted, self.params)
        found = np.flatnonzero(weights)
        weights = weights[found] / weights.sum()
        found = found if places is None else places[found]
        return found if ids is None else ids[found], weights

    @functools.cached_property
    def _penalties(self) -> Penalties:
        return Penalties(self.params, self._prompt_ids)

    @functools.cached_property
    def _is_plain(self) -> bool:
        return self.params.temperature == 0 and self._matcher is None and not self._penalties.wanted

    @functools.cached_property
    def _random(self) -> np.random.Generator:
        """Made for the first draw: greedy decoding has none, and numpy loads generators only when asked for them."""
        stream = np.random.SeedSequence(self.params.seed, spawn_key=(self._index,) if self._index else ())
        return np.random.Generator(np.random.Philox(stream))

    def _choose(self, logits: Logits) -> int:
        ids, adjusted = self._adjusted(logits)
        if self.params.temperature == 0:
            place = int(adjusted.argmax())
        else:
            places, weights = kept_tokens(adjusted, self.params)
            place = draw(weights, self._random.random())
            place = place if places is None else int(places[place])
        return place if ids is None else int(ids[place])

    def _adjusted(self, logits: Logits) -> tuple[npt.NDArray[np.int64] | None, Logits]:
        """Logits after penalties and biases, of the ids that the grammar allows; None for all, in order."""
        if self._penalties.wanted:
            changed = scratch.take("adjusted", logits.size)
            np.copyto(changed, logits)
            self._penalties.apply(changed)
            logits = changed
        if self._matcher is None:
            return None, logits
        allowed = self._matcher.allowed()[: logits.size]
        logits = logits[: allowed.size]
        ids = np.flatnonzero(allowed)
        if 2 * ids.size < allowed.size:
            return ids, logits[ids]
        masked = scratch.take("masked", logits.size)
        np.copyto(masked, logits)
        masked[np.flatnonzero(~allowed)] = -np.inf
        return None, masked
