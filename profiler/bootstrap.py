"""How sure a ratio of perplexities is: a paired bootstrap over documents (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from profiler.quality import Interval

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_DOCUMENTS = 5
DRAWN_AT_ONCE = 1 << 22  # documents
Floats = npt.NDArray[np.float64]


def ratio_interval(
    losses: Floats, reference: Floats, tokens: Floats, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The percentile interval of perplexity over the reference's; None for fewer than five documents.

    Documents are drawn with replacement, each with its tokens and both losses: what is hard about a document is hard
    for both, and cancels. The ratio of a draw is that of all of its tokens together, as it is for the text.

    Args:
        losses: fp64 `[documents]`, summed loss in nats of what is judged.
        reference: the same of the reference.
        tokens: fp64 `[documents]`, tokens that the sums run over.
        resamples: number of draws.
        seed: makes the draws repeatable.
    """
    documents = len(tokens)
    if documents < FEWEST_DOCUMENTS:
        return None
    found = bootstrap(
        (losses - reference, tokens),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, DRAWN_AT_ONCE // documents),
        confidence_level=LEVEL,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), LEVEL, documents, resamples)


def ratio(gaps: Floats, tokens: Floats, axis: int = -1) -> Floats:
    """exp of summed gaps in loss over summed tokens: the ratio of two perplexities over the same tokens."""
    per_token: Floats = gaps.sum(axis) / tokens.sum(axis)
    return np.exp(np.minimum(per_token, 700.0))
