import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.recorder import Recorder

HIDDEN = torch.zeros(0)


def activations(generator: np.random.Generator, tokens: int, rows: int, share: float = 0.2) -> torch.Tensor:
    values = generator.standard_normal((tokens, rows)) * (generator.random((tokens, rows)) < share)
    return torch.from_numpy(values.astype(np.float32))


def union_by_hand(active: np.ndarray, width: int) -> np.ndarray:
    counts = np.zeros(active.shape[1], dtype=np.int64)
    for start in range(0, len(active), width):
        window = active[start : start + width]
        counts += window.any(axis=0) * len(window)
    return counts


@settings(deadline=None, max_examples=40)
@given(
    calls=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_counts_are_those_of_the_whole_text_however_it_is_cut_into_calls(calls, rows, seed, data):
    generator = np.random.default_rng(seed)
    total = sum(calls)
    orders = [generator.permutation(rows) for _ in range(2)]
    texts = [activations(generator, total, rows) for _ in range(2)]
    names = [torch.from_numpy(generator.random((total, rows)) < 0.5) for _ in range(2)]
    recorder = Recorder(2, rows, orders)
    at = 0
    for tokens in calls:
        if data.draw(st.booleans()):
            recorder.document()
        for layer in range(2):
            recorder.ffn(layer, HIDDEN, texts[layer][at : at + tokens], names[layer][at : at + tokens])
        at += tokens
    if total == 0:
        with pytest.raises(UserError, match="empty"):
            recorder.to_profile("s", "c")
        return
    profile = recorder.to_profile("s", "c", (0.0, 0.0), True)
    assert profile.tokens == total == recorder.tokens
    for layer in range(2):
        active = texts[layer].numpy() != 0
        rows_of = {
            "active": active.sum(0),
            "named": names[layer].numpy().sum(0),
            "union4": union_by_hand(active, 4),
            "union16": union_by_hand(active, 16),
        }
        for name, expected in rows_of.items():
            by_id = getattr(profile, name)[layer]
            assert by_id.dtype == np.int64
            np.testing.assert_array_equal(by_id[orders[layer]], expected)
    assert (profile.active <= profile.union4).all()
    assert (profile.union4 <= profile.union16).all()
    assert (profile.union16 <= total).all()


def test_rows_are_ids_where_no_order_is_given_and_named_may_be_missing():
    recorder = Recorder(1, 3)
    recorder.ffn(0, HIDDEN, torch.tensor([[0.0, -2.0, 0.0], [0.0, 1.0, 3.0]]), None)
    profile = recorder.to_profile("source", "corpus")
    assert profile.active.tolist() == [[0, 2, 1]]
    assert profile.union4.tolist() == profile.union16.tolist() == [[0, 2, 2]]
    assert profile.named.tolist() == [[0, 0, 0]]
    assert not profile.has_predictors
    assert (profile.source_digest, profile.corpus_digest, profile.thresholds) == ("source", "corpus", ())


def test_asking_for_the_profile_does_not_disturb_the_windows():
    text = activations(np.random.default_rng(3), 100, 5)
    once, twice = Recorder(1, 5), Recorder(1, 5)
    for start in range(0, 100, 7):
        once.ffn(0, HIDDEN, text[start : start + 7], None)
        twice.ffn(0, HIDDEN, text[start : start + 7], None)
        twice.to_profile("s", "c")
    for name in ("active", "union4", "union16"):
        np.testing.assert_array_equal(
            getattr(once.to_profile("s", "c"), name), getattr(twice.to_profile("s", "c"), name)
        )


def test_union_of_independent_neurons_is_what_probability_says():
    share, tokens, rows = 0.1, 16_000, 64
    recorder = Recorder(1, rows)
    recorder.ffn(0, HIDDEN, activations(np.random.default_rng(0), tokens, rows, share), None)
    profile = recorder.to_profile("s", "c")
    assert profile.frequency("active").mean() == pytest.approx(share, rel=0.02)
    for width in (4, 16):
        expected = 1 - (1 - share) ** width
        assert profile.frequency(f"union{width}").mean() == pytest.approx(expected, rel=0.02)


def test_the_order_has_to_be_a_permutation():
    with pytest.raises(AssertionError, match="permutation"):
        Recorder(1, 3, [np.array([0, 1, 1])])
