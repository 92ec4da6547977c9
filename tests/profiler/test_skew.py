import numpy as np
import pytest

from profiler.profile import Profile, compact
from profiler.skew import SHARES, given, hot_share, measure_skew


def make(parts: np.ndarray) -> Profile:
    """A profile with `parts [domains, 2, layers, neurons]` of 1000 tokens each."""
    active = parts.sum((0, 1))
    tokens = 1000 * parts.shape[0] * 2
    domains = tuple("abcd"[: len(parts)])
    unions = dict.fromkeys(("named", "union4", "union16"), active)
    part_tokens = ((1000, 1000),) * len(parts)
    return Profile(
        "s", "c", tokens, active, **unions, domains=domains, part_tokens=part_tokens, parts=compact(parts)
    )  # fmt: skip


def test_by_hand():
    # 10 neurons; each half has a hot neuron of its own, and one that both share.
    halves = np.ones((1, 2, 1, 10), dtype=np.int64)
    halves[0, 0, 0, [0, 1]] = [80, 40]
    halves[0, 1, 0, [0, 2]] = [80, 40]
    skew = measure_skew(make(halves))
    layer = skew.layers[0]
    ten, twenty = SHARES.index(0.10), SHARES.index(0.20)
    assert layer.held_out[ten] == pytest.approx(80 / 128)
    assert layer.held_out[twenty] == pytest.approx(81 / 128)  # the second choice of the other half gives 1 of 128 here
    assert layer.in_sample[twenty] == pytest.approx((160 + 41) / 256)
    assert skew.held_out == layer.held_out
    assert skew.domains[0].chosen_on == {}


def test_domains_that_share_nothing_give_each_other_nothing():
    parts = np.zeros((2, 2, 3, 100), dtype=np.int64)
    parts[0, :, :, :40] = 7
    parts[1, :, :, 60:] = 7
    skew = measure_skew(make(parts))
    half = SHARES.index(0.50)
    first, second = skew.domains
    assert first.in_sample[half] == second.in_sample[half] == 1
    assert first.chosen_on["b"][half] == pytest.approx(10 / 40)  # the ten cold ones that ties take in by id
    assert second.chosen_on["a"][SHARES.index(0.43)] == 0
    assert first.tokens == 2000
    assert len(skew.layers) == 3


def test_held_out_shares_of_chance_are_below_those_in_sample_and_fall_to_the_share_itself():
    generator = np.random.default_rng(0)
    skew = measure_skew(make(generator.binomial(1000, 0.01, (1, 2, 4, 2000))))
    for k, share in enumerate(SHARES):
        assert skew.held_out[k] == pytest.approx(share, rel=0.15)
        assert skew.in_sample[k] > 1.1 * share


def test_nothing_active_and_everything_active():
    assert measure_skew(make(np.zeros((1, 2, 1, 5), dtype=np.int64))).held_out == (None,) * len(SHARES)
    every = measure_skew(make(np.full((1, 2, 1, 100), 1000)))
    assert every.held_out == pytest.approx(SHARES)


def test_version_1_has_no_halves():
    counts = np.ones((1, 3), dtype=np.int64)
    assert measure_skew(Profile("s", "c", 1, counts, counts, counts, counts)) is None


def test_hot_share():
    counts = np.array([[50, 30, 10, 10, 0]])
    profile = Profile("s", "c", 100, counts, counts, counts, counts)
    assert hot_share(profile, 0) == pytest.approx(0.4)
    assert hot_share(Profile("s", "c", 100, counts * 0, counts, counts, counts), 0) == 0


def test_at_least_one_neuron_is_chosen():
    assert given(np.array([1, 9]), np.array([1, 3]))[0] == 0.75
