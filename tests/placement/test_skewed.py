"""Profiles made up from published figures: their mean, their skew, and what no power law can do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.skewed import LARGEST, carried, firing_shares, skewed_frequencies, solve
from profiler.artifacts import UserError


@settings(deadline=None, max_examples=30)
@given(st.integers(300, 4000), st.floats(0.02, 0.2), st.floats(0.24, 0.5))
def test_shares_have_the_mean_and_the_skew_asked_for(neurons: int, active: float, hot: float) -> None:
    shares = firing_shares(neurons, active, hot)
    assert shares.shape == (neurons,)
    assert float(shares.mean()) == pytest.approx(active, rel=1e-6)
    assert carried(shares, hot) == pytest.approx(0.8, abs=0.01)
    assert bool((np.diff(shares) <= 0).all())
    assert float(shares.min()) > 0 and float(shares.max()) <= LARGEST


def test_the_cut_law_is_a_power_law_below_the_cut() -> None:
    shares = firing_shares(2000, 0.1, 0.3)
    below = np.flatnonzero(shares < LARGEST)
    slopes = np.diff(np.log(shares[below])) / np.diff(np.log(below + 1))
    assert slopes == pytest.approx(slopes[0], rel=1e-6)


def test_a_quarter_of_the_neurons_cannot_carry_what_they_have_no_room_for() -> None:
    with pytest.raises(UserError, match="hot neurons"):
        firing_shares(1000, active=0.6, hot_share=0.26)


@pytest.mark.parametrize(("active", "hot"), [(0.0, 0.3), (0.96, 0.3), (0.1, 0.0), (0.1, 0.8), (float("nan"), 0.3)])
def test_shares_that_cannot_be_are_refused(active: float, hot: float) -> None:
    with pytest.raises(UserError, match="cannot be made up"):
        firing_shares(1000, active, hot)


def test_tokens_of_a_window_are_independent() -> None:
    frequencies = skewed_frequencies(2, np.array([0.5, 0.1]), named_over_active=1.5)
    assert frequencies.active.shape == (2, 2)
    assert frequencies.union4[1] == pytest.approx([1 - 0.5**4, 1 - 0.9**4])
    assert frequencies.needed("exact", 32)[0] == pytest.approx([1 - 0.5**32, 1 - 0.9**32])
    assert frequencies.named[0] == pytest.approx([0.75, 0.15])
    assert frequencies.needed("predicted", 4)[0] == pytest.approx([1 - 0.25**4, 1 - 0.85**4])


def test_solve_finds_where_a_rising_function_takes_a_value() -> None:
    assert solve(lambda x: x**3, 8.0, 1e-3, 1e3) == pytest.approx(2.0)
