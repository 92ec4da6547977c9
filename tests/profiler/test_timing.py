"""Timing of callables: by a clock that the calls move themselves, so that nothing here depends on the machine."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.timing import Case, Timing, intercept, repeated, spread, time_cases


class FakeClock:
    """Stands still, but for what calls add."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, *durations: float):
        """A callable that takes these seconds in turn."""
        turns = iter(durations * 1000)

        def run() -> None:
            self.now += next(turns)

        return run


def test_the_median_of_the_rounds_medians_is_the_result() -> None:
    clock = FakeClock()
    timing = time_cases({"a": Case(clock.call(2.0))}, seconds=12.0, rounds=3, clock=clock)["a"]
    assert timing == Timing((2.0, 2.0, 2.0), calls=6)
    assert (timing.seconds, timing.spread) == (2.0, 0.0)


def test_one_slow_call_or_one_slow_round_does_not_count() -> None:
    clock = FakeClock()
    calls = clock.call(0, 1, 1, 50, 1, 1, 70, 70, 70, 1, 1, 1)  # the first is not timed
    timing = time_cases({"a": Case(calls)}, seconds=9.0, rounds=3, clock=clock)["a"]
    assert timing.rounds[0] == 1
    assert timing.seconds == pytest.approx(1)


def test_cases_take_turns_and_are_called_once_before() -> None:
    clock, order = FakeClock(), []
    cases = {name: Case(lambda name=name: (order.append(name), clock.call(1.0)())) for name in "ab"}
    heard = []
    time_cases(cases, seconds=0.0, rounds=2, clock=clock, tell=lambda *at: heard.append(at))
    assert order == ["a", "a", "b", "b", "a", "b"]
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_two_cases_are_compared_round_by_round() -> None:
    drifting, steady = Timing((1.0, 2.0, 4.0), 3), Timing((2.0, 4.0, 8.0), 3)
    assert steady.over(drifting) == [2.0, 2.0, 2.0]
    assert steady.beyond(drifting) == [1.0, 2.0, 4.0]


def test_the_other_call_runs_beside_and_ends_with_the_block() -> None:
    threads, seen = set(), threading.Event()

    def beside() -> None:
        threads.add(threading.current_thread())
        seen.set()

    def call() -> None:
        assert seen.is_set(), "the block begins after the first call beside it"

    time_cases({"a": Case(call, beside)}, seconds=0.0, rounds=2)
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_what_fails_beside_is_raised_here() -> None:
    def fail() -> None:
        raise RuntimeError("gone wrong")

    with pytest.raises(RuntimeError, match="gone wrong"), repeated(fail):
        pass
    with pytest.raises(KeyError), repeated(lambda: None):
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "hybrid-beside"]


def test_spread_is_between_the_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([7.0]) == 0
    assert spread([0.0, 0.0, 1.0]) == 0


@given(st.floats(0, 1e-3), st.floats(0, 1e-6))
def test_the_intercept_of_a_line_is_what_it_was_drawn_with(start: float, slope: float) -> None:
    sizes = [100.0, 200.0, 400.0]
    assert intercept(sizes, [start + slope * size for size in sizes]) == pytest.approx(start, abs=1e-9)


def test_no_delay_is_negative() -> None:
    assert intercept([1.0, 2.0, 3.0], [1.0, 3.0, 5.0]) == 0
