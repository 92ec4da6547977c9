"""A profile's counts in row order, and what a batch needs of them."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from placement.frequencies import Frequencies
from profiler.artifacts import UserError
from profiler.profile import Profile

Make = Callable[..., Frequencies]


def profile_of(active: list[list[int]], tokens: int = 16, has_predictors: bool = True) -> Profile:
    counts = np.array(active, dtype=np.int64)
    return Profile(
        source_digest="s",
        corpus_digest="c",
        tokens=tokens,
        active=counts,
        named=np.minimum(counts + 1, tokens),
        union4=np.minimum(counts * 3, tokens),
        union16=np.where(counts > 0, tokens, 0),
        has_predictors=has_predictors,
    )


def test_counts_follow_the_rows() -> None:
    profile = profile_of([[1, 8, 4], [0, 2, 16]])
    ids = np.array([[1, 2, 0], [2, 0, 1]], dtype=np.int32)
    frequencies = Frequencies.in_row_order(profile, ids)
    assert frequencies.active.tolist() == [[8 / 16, 4 / 16, 1 / 16], [1, 0, 2 / 16]]
    assert frequencies.named.tolist() == [[9 / 16, 5 / 16, 2 / 16], [1, 1 / 16, 3 / 16]]
    assert frequencies.union4.tolist() == [[1, 12 / 16, 3 / 16], [1, 0, 6 / 16]]
    hottest = np.stack([profile.hottest_first(layer) for layer in range(2)])
    assert (np.diff(Frequencies.in_row_order(profile, hottest).active, axis=1) <= 0).all()


@pytest.mark.parametrize("ids", [[[0, 1, 1], [0, 1, 2]], [[0, 1, 3], [0, 1, 2]], [[0, 1, 2]], [[0, 1], [0, 1]]])
def test_rows_of_another_model_are_refused(ids: list[list[int]]) -> None:
    with pytest.raises(UserError, match="profile the model anew"):
        Frequencies.in_row_order(profile_of([[1, 8, 4], [0, 2, 16]]), np.array(ids))


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_shares_outside_their_range_are_refused(bad: float) -> None:
    good = np.zeros((1, 2))
    with pytest.raises(UserError, match="union4 should lie between 0 and 1"):
        Frequencies(good, good, np.array([[0, bad]]), good, False)
    with pytest.raises(UserError, match=r"named should be float64 \[layers, rows\]"):
        Frequencies(good, np.zeros((1, 3)), good, good, False)


def test_dense_needs_every_row_and_one_token_what_was_counted(make_frequencies: Make) -> None:
    frequencies = make_frequencies()
    assert (frequencies.needed("dense", 7) == 1).all()
    assert np.array_equal(frequencies.needed("exact", 1), frequencies.active)
    assert np.array_equal(frequencies.needed("threshold", 4), frequencies.needed("exact", 4))
    assert np.allclose(frequencies.needed("predicted", 1), frequencies.named, atol=1e-9)


def test_batches_of_four_and_sixteen_are_as_measured(make_frequencies: Make) -> None:
    frequencies = make_frequencies()
    assert np.array_equal(frequencies.needed("exact", 4), frequencies.union4)
    assert np.array_equal(frequencies.needed("exact", 16), frequencies.union16)
    between = frequencies.needed("exact", 8)
    assert np.allclose(between, (frequencies.union4 + frequencies.union16) / 2)
    assert np.allclose(frequencies.needed("exact", 2), (frequencies.active + frequencies.union4) / 2)
    assert np.allclose(frequencies.needed("exact", 32), 1 - (1 - frequencies.union16) ** 2)


def test_what_is_named_grows_with_a_rows_own_exponent() -> None:
    # Of the three rows one was never seen active, one always, one in independent tokens.
    active = np.array([[0.0, 1.0, 0.1]])
    union4 = np.array([[0.0, 1.0, 1 - 0.9**4]])
    frequencies = Frequencies(active, np.array([[0.2, 0.9, 0.3]]), union4, union4, True)
    assert np.allclose(frequencies.needed("predicted", 4), [[1 - 0.8**4, 0.9, 1 - 0.7**4]])


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted", "threshold"])
def test_a_larger_batch_never_needs_less(make_frequencies: Make, mode: str) -> None:
    frequencies = make_frequencies()
    shares = [frequencies.needed(mode, batch) for batch in (1, 2, 3, 4, 6, 8, 16, 20, 64, 4096)]
    for smaller, larger in itertools.pairwise(shares):
        assert (larger >= smaller - 1e-12).all()
    assert shares[-1].max() <= 1


def test_predicted_needs_predictors(make_frequencies: Make) -> None:
    with pytest.raises(UserError, match="no predictors"):
        make_frequencies(has_predictors=False).needed("predicted", 1)
