"""Log probabilities of tokens by the model's own distribution: the log-softmax of its logits as they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hybrid.runtime.distribution import leading, scratch, total


class TokenLogprob(NamedTuple):
    """One token of an output. alternatives: the likeliest tokens at its place and their log probabilities, falling."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: npt.NDArray[np.float32], token_id: int, alternatives: int) -> TokenLogprob:
    """Of a token that follows fp32 `[vocab]` logits, and of so many of the likeliest."""
    greatest = logits.max()
    weights = np.subtract(logits, greatest, out=scratch.take("weights", logits.size))
    np.exp(weights, out=weights)
    normaliser = float(greatest) + math.log(total(weights))
    likeliest = leading(logits, alternatives) if alternatives else ()
    return TokenLogprob(
        token_id,
        float(logits[token_id]) - normaliser,
        tuple((int(i), float(logits[i]) - normaliser) for i in likeliest),
    )
