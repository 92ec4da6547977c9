"""The paired bootstrap: that its intervals hold the truth as often as they say, and what it pairs."""

import math

import numpy as np
import pytest

from profiler.bootstrap import FEWEST_DOCUMENTS, ratio_interval

TRUE_GAP = 0.01  # nats per token


def documents(count, seed, spread=0.02):
    """Losses of dense and of a mode, and tokens; hard documents are hard for both."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 3000, count).astype(float)
    dense = tokens * generator.normal(2.5, 0.7, count)
    return dense + tokens * generator.normal(TRUE_GAP, spread, count), dense, tokens


def test_nineteen_of_twenty_intervals_hold_the_true_ratio():
    held = 0
    for seed in range(300):
        found = ratio_interval(*documents(60, seed), resamples=1000, seed=seed)
        held += found.low <= math.exp(TRUE_GAP) <= found.high
    assert (
        0.91 <= held / 300 <= 0.985
    )  # three standard deviations about 95 %, and the percentile method is a bit narrow


def test_the_interval_is_that_of_a_bootstrap_written_out():
    mode, dense, tokens = documents(12, 3)
    found = ratio_interval(mode, dense, tokens, resamples=20_000)
    generator = np.random.default_rng(99)
    ratios = []
    for _ in range(20_000):
        drawn = generator.integers(0, 12, 12)
        ratios.append(math.exp(mode[drawn].sum() / tokens[drawn].sum() - dense[drawn].sum() / tokens[drawn].sum()))
    low, high = np.percentile(ratios, [2.5, 97.5])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.03 * width)
    assert found.high == pytest.approx(high, abs=0.03 * width)
    assert (found.documents, found.level, found.resamples) == (12, 0.95, 20_000)


def test_what_is_hard_for_both_cancels():
    mode, dense, tokens = documents(40, 1, spread=0.0)
    found = ratio_interval(mode, dense, tokens)
    assert found.low == pytest.approx(math.exp(TRUE_GAP), rel=1e-12)
    assert found.high == pytest.approx(math.exp(TRUE_GAP), rel=1e-12)
    shuffled = ratio_interval(np.roll(mode, 1) * tokens / np.roll(tokens, 1), dense, tokens)
    assert shuffled.high - shuffled.low > 0.1


def test_a_seed_repeats_the_interval_and_a_mode_that_is_dense_has_none_of_width():
    mode, dense, tokens = documents(30, 2)
    assert ratio_interval(mode, dense, tokens) == ratio_interval(mode, dense, tokens)
    same = ratio_interval(dense, dense, tokens)
    assert (same.low, same.high) == (1, 1)


def test_fewer_than_five_documents_have_no_interval():
    assert ratio_interval(*documents(FEWEST_DOCUMENTS - 1, 0)) is None
    assert ratio_interval(*documents(FEWEST_DOCUMENTS, 0)) is not None
