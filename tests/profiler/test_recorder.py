import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.recorder import Recorder, count_bits


def random_bits(generator: np.random.Generator, tokens: int, rows: int, share: float = 0.2) -> np.ndarray:
    return (generator.random((tokens, rows)) < share).astype(np.uint8)


def union_by_hand(active: np.ndarray, width: int) -> np.ndarray:
    counts = np.zeros(active.shape[1], dtype=np.int64)
    for start in range(0, len(active), width):
        window = active[start : start + width]
        counts += window.any(axis=0) * len(window)
    return counts


@settings(deadline=None, max_examples=40)
@given(
    calls=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=8),
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_counts_are_those_of_the_whole_text_however_it_is_cut_into_calls(calls, rows, seed, data):
    generator = np.random.default_rng(seed)
    total = sum(tokens for _, tokens in calls)
    orders = [generator.permutation(rows) for _ in range(2)]
    texts = [random_bits(generator, total, rows) for _ in range(2)]
    names = [random_bits(generator, total, rows, 0.5) for _ in range(2)]
    recorder = Recorder(2, rows, ("a", "b", "c"), orders)
    part_of = np.repeat([part for part, _ in calls], [tokens for _, tokens in calls])
    at = 0
    while at < total:
        step = data.draw(st.integers(1, total - at))
        here = slice(at, at + step)
        edges = [0, *(np.flatnonzero(np.diff(part_of[here])) + 1), step]
        parts = [(int(part_of[at + a]), int(b - a)) for a, b in itertools.pairwise(edges)]
        for layer in range(2):
            recorder.active(layer, texts[layer][here], parts)
            recorder.named(layer, names[layer][here])
        if data.draw(st.booleans()):  # a run that was killed goes on with another recorder
            other = Recorder(2, rows, ("a", "b", "c"), orders)
            other.restore(recorder.state())
            recorder = other
        at += step
    if total == 0:
        with pytest.raises(UserError, match="empty"):
            recorder.to_profile("s", "c")
        return
    profile = recorder.to_profile("s", "c", (0.0, 0.0), "digest")
    assert profile.tokens == total == recorder.tokens
    assert profile.has_predictors
    for layer in range(2):
        active = texts[layer]
        rows_of = {"active": active.sum(0), "union4": union_by_hand(active, 4), "union16": union_by_hand(active, 16)}
        for name, expected in rows_of.items():
            by_id = getattr(profile, name)[layer]
            assert by_id.dtype == np.int64
            np.testing.assert_array_equal(by_id[orders[layer]], expected)
        np.testing.assert_array_equal(profile.named[layer], names[layer].sum(0))
        for part in range(6):
            mine = active[part_of == part]
            np.testing.assert_array_equal(profile.parts[part // 2, part % 2, layer][orders[layer]], mine.sum(0))
            assert profile.part_tokens[part // 2][part % 2] == len(mine)
    assert (profile.active <= profile.union4).all()
    assert (profile.union4 <= profile.union16).all()
    assert (profile.union16 <= total).all()


def test_rows_are_ids_where_no_order_is_given_and_named_may_be_missing():
    recorder = Recorder(1, 3)
    recorder.active(0, np.array([[0, 1, 0], [0, 1, 1]], dtype=np.uint8))
    profile = recorder.to_profile("source", "corpus")
    assert profile.active.tolist() == [[0, 2, 1]]
    assert profile.union4.tolist() == profile.union16.tolist() == [[0, 2, 2]]
    assert profile.named.tolist() == [[0, 0, 0]]
    assert not profile.has_predictors
    assert (profile.source_digest, profile.corpus_digest, profile.thresholds) == ("source", "corpus", ())


def test_asking_for_the_profile_does_not_disturb_the_windows():
    text = random_bits(np.random.default_rng(3), 100, 5)
    once, twice = Recorder(1, 5), Recorder(1, 5)
    for start in range(0, 100, 7):
        once.active(0, text[start : start + 7])
        twice.active(0, text[start : start + 7])
        twice.to_profile("s", "c")
    for name in ("active", "union4", "union16"):
        np.testing.assert_array_equal(
            getattr(once.to_profile("s", "c"), name), getattr(twice.to_profile("s", "c"), name)
        )


def test_union_of_independent_neurons_is_what_probability_says():
    share, tokens, rows = 0.1, 16_000, 64
    recorder = Recorder(1, rows)
    recorder.active(0, random_bits(np.random.default_rng(0), tokens, rows, share))
    profile = recorder.to_profile("s", "c")
    assert profile.frequency("active").mean() == pytest.approx(share, rel=0.02)
    for width in (4, 16):
        expected = 1 - (1 - share) ** width
        assert profile.frequency(f"union{width}").mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("tokens", [0, 1, 254, 255, 256, 511, 1000])
def test_a_byte_does_not_run_over(tokens):
    assert count_bits(np.ones((tokens, 3), dtype=np.uint8)).tolist() == [tokens] * 3


def test_the_order_has_to_be_a_permutation():
    with pytest.raises(AssertionError, match="permutation"):
        Recorder(1, 3, row_to_id=[np.array([0, 1, 1])])
