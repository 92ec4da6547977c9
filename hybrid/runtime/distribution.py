"""Cuts of a distribution over a vocabulary, and draws from it, without sorting it.

A vocabulary has 32,000 to 260,000 tokens, and each sequence of a step is sampled while nothing else is computed. So
weights are fp32 (relative error 1e-6), sums are taken by columns of the row laid out as `[DEPTH, n]`, and only tokens
that can matter are sorted. Which tokens are kept is decided on the logits themselves.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

from hybrid.runtime.sampling_params import SamplingParams

Values = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

DEPTH = 128  # rows of the layout; a column has so many tokens
FEW = 4096  # up to so many weights are summed one after the other
RUNGS = (64, 2048)  # so many of the likeliest are tried for a nucleus, before its edge is sought among all
SAMPLE = 4096  # tokens from which that edge is guessed
STEEPEST = 1e25  # 1 / temperature: any difference of logits is more than a hundred then


class _Scratch(threading.local):
    """A row of the vocabulary that is used again by whatever is sampled next on this thread."""

    def __init__(self) -> None:
        self._memory: dict[str, Values] = {}

    def take(self, purpose: str, size: int) -> Values:
        memory = self._memory.get(purpose)
        if memory is None or memory.size < size:
            memory = self._memory[purpose] = np.empty(size, dtype=np.float32)
        return memory[:size]


scratch = _Scratch()


def kept_tokens(logits: Values, params: SamplingParams) -> tuple[Ids | None, Values]:
    """What may be drawn: ids, or None for all in order, and their weights: the greatest is 1, what is cut may be 0.

    Temperature, then top_k, then top_p, then min_p; of equal logits the lower id counts as likelier. The weights are
    lent: they hold until the next call.
    """
    greatest = logits.max()
    steepness = np.float32(min(1 / params.temperature, STEEPEST) if params.temperature > 1 / STEEPEST else STEEPEST)
    ids: Ids | None = None
    if 0 < params.top_k < logits.size:
        ids = leading(logits, params.top_k)
        weights = _weights(logits[ids], greatest, steepness)
        if params.top_p < 1:
            ids, weights = _nucleus(ids, weights, params.top_p * float(weights.sum(dtype=np.float64)))
    elif params.top_p < 1:
        weights = _weights(logits, greatest, steepness, scratch.take("weights", logits.size))
        ids, weights = _likeliest(logits, weights, params.top_p)
    elif params.min_p > 0:
        least = greatest + np.float32(np.log(params.min_p)) / steepness
        ids = np.flatnonzero(logits >= least)
        return ids, _weights(logits[ids], greatest, steepness)
    else:
        return None, _weights(logits, greatest, steepness, scratch.take("weights", logits.size))
    if params.min_p > 0:
        weights = weights * (weights >= params.min_p)
    return ids, weights


def leading(values: Values, count: int) -> Ids:
    """The places of the `count` greatest of `[n]`, falling; of equals the first."""
    size = values.size
    if count >= size:
        return _falling(values, np.arange(size))
    depth = min(DEPTH, size // (4 * count))
    if depth >= 4:  # as many columns have a value as large as the count-th of their greatest
        across = size // depth
        tops = values[: depth * across].reshape(depth, across).max(axis=0)
        least = np.partition(tops, across - count)[across - count]
    else:
        least = np.partition(values, size - count)[size - count]
    ids = np.flatnonzero(values >= least)
    return _falling(values[ids], ids)[:count]


def total(weights: Values) -> float:
    """The sum of `[n]`."""
    return float(_column_sums(weights).sum(dtype=np.float64))


def draw(weights: Values, uniform: float) -> int:
    """A place of `[n]` weights, as often as its share of their sum says, for a number in [0, 1). No weight, no draw."""
    if weights.size <= FEW:
        return _place(weights, uniform)[0]
    across = weights.size // DEPTH
    column, rest = _place(_column_sums(weights), uniform)
    if column == across:
        return DEPTH * across + _place(weights[DEPTH * across :], rest)[0]
    return column + across * _place(weights[column : DEPTH * across : across], rest)[0]


def _place(weights: Values, uniform: float) -> tuple[int, float]:
    """The place where the share `uniform` of the sum is reached, and how far into the place that is, in [0, 1)."""
    cumulative = weights.cumsum(dtype=np.float64)
    wanted = uniform * cumulative[-1]
    place = int(np.searchsorted(cumulative, wanted, side="right"))
    if place == cumulative.size:  # by rounding
        place = int(np.searchsorted(cumulative, cumulative[-1]))
    before = cumulative[place - 1] if place else 0.0
    return place, min(max((wanted - before) / (cumulative[place] - before), 0.0), 1 - 2**-53)


def _column_sums(weights: Values) -> Values:
    """Sums of the columns of `[DEPTH, n // DEPTH]`, and then of what is left over."""
    across = weights.size // DEPTH
    sums = np.empty(across + 1, dtype=np.float32)
    weights[: DEPTH * across].reshape(DEPTH, across).sum(axis=0, out=sums[:-1])
    sums[-1] = weights[DEPTH * across :].sum()
    return sums


def _weights(logits: Values, greatest: np.float32, steepness: np.float32, out: Values | None = None) -> Values:
    weights = np.subtract(logits, greatest, out=out)
    if steepness != 1:
        weights *= steepness
    return np.exp(weights, out=weights)


def _likeliest(logits: Values, weights: Values, top_p: float) -> tuple[Ids | None, Values]:
    """The nucleus of a whole vocabulary; its weights may be changed."""
    wanted = top_p * total(weights)
    for rung in RUNGS:
        if rung < logits.size:
            ids = leading(logits, rung)
            if weights[ids].sum(dtype=np.float64) >= wanted:
                return _nucleus(ids, weights[ids], wanted)
    ids, before = _edge(logits, weights, wanted)
    last = _nucleus(ids, weights[ids], wanted - before)[0][-1]
    weights *= logits >= logits[last]
    equals = np.flatnonzero(logits == logits[last])
    weights[equals[equals > last]] = 0
    return None, weights


def _edge(logits: Values, weights: Values, wanted: float) -> tuple[Ids, float]:
    """Tokens by falling logit, among them the last of those likeliest that weigh `wanted`, and the weight before them.

    A sample says between which two logits it lies; where it says wrong, all tokens are returned.
    """
    whole = total(weights)
    places = np.arange(0, logits.size, max(1, logits.size // SAMPLE))
    places = places[np.argsort(-logits[places])]
    shares = weights[places].cumsum(dtype=np.float64)
    wanted_share = wanted / whole
    margin = 4 * math.sqrt(wanted_share * (1 - wanted_share) / places.size)
    upper = int(np.searchsorted(shares, (wanted_share - margin) * shares[-1]))
    lower = int(np.searchsorted(shares, (wanted_share + margin) * shares[-1]))
    below = logits <= logits[places[upper]] if upper else np.ones(logits.size, dtype=np.bool_)
    before = total(weights * ~below) if upper else 0.0
    ids = np.flatnonzero(below & (logits >= logits[places[lower]]) if lower < places.size else below)
    if not before < wanted <= before + weights[ids].sum(dtype=np.float64):
        # All tokens below (1 - p) / n weigh less than 1 - p together, so that what weighs p needs none of them.
        ids, before = np.flatnonzero(weights >= (whole - wanted) / logits.size), 0.0
    return _falling(logits[ids], ids), before


def _nucleus(ids: Ids, weights: Values, wanted: float) -> tuple[Ids, Values]:
    """The fewest of falling weights that reach `wanted`."""
    count = int(np.searchsorted(weights.cumsum(dtype=np.float64), wanted)) + 1
    return ids[:count], weights[:count]


def _falling(values: Values, ids: Ids) -> Ids:
    """Ids by falling value, then rising id: sorted as whole numbers, which numpy does fastest."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    keys = np.where(bits >> 31, bits, np.uint32(0x7FFFFFFF) - bits).astype(np.uint64) << np.uint64(32)
    keys |= ids.astype(np.uint64)
    keys.sort()
    found: Ids = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return found
