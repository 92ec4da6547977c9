"""The share and the seconds left that `hybrid prepare` shows: guesses first, its own pace once it runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.display_overall import time_left
from hybrid.spec import ModelSpec
from hybrid.stages.prepare_pace import Pace, ProfileShare, Status, profile_seconds


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def make(expected: dict[str, float]) -> tuple[Pace, Clock, list[Status]]:
    clock, shown = Clock(), list[Status]()
    return Pace(dict(expected), shown.append, clock), clock, shown


def test_a_phase_is_believed_once_it_runs() -> None:
    pace, clock, shown = make({"pack": 10.0, "profile": 100.0})
    pace.begin("pack")
    assert shown[-1] == Status("pack", "pack", 0.0, 110.0)
    clock.now = 20.0
    pace.tell("packing", 0.25)  # twice as slow as was guessed, and more
    assert shown[-1].left == pytest.approx(60.0 + 100.0)
    assert shown[-1].share == pytest.approx(20 / 180)
    clock.now = 80.0
    pace.begin("profile")
    assert shown[-1].left == pytest.approx(100.0)
    assert shown[-1].share == pytest.approx(80 / 180)
    clock.now = 130.0
    pace.tell("counting", 1.0)
    assert (shown[-1].left, shown[-1].share) == (0.0, 1.0)
    pace.finish()
    assert shown[-1] == Status("ready", "", 1.0, 0.0)


def test_nothing_is_said_of_a_phase_that_nobody_guessed() -> None:
    pace, clock, shown = make({})
    pace.begin("download")
    assert shown[-1].left is None and shown[-1].share == 0.0
    clock.now = 5.0
    pace.tell("download", 0.5)
    assert shown[-1].left == pytest.approx(5.0)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e6), max_size=4),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1), st.floats(0, 1e5)), max_size=30),
)
def test_shares_are_shares_and_times_are_not_negative(
    expected: dict[str, float], steps: list[tuple[str, float, float]]
) -> None:
    pace, clock, shown = make(expected)
    running = ""
    for phase, share, seconds in steps:
        if phase != running:
            pace.begin(phase)
            running = phase
        clock.now += seconds
        pace.tell("stage", share)
    for status in shown:
        assert 0 <= status.share <= 1 + 1e-9
        assert status.left is None or status.left >= 0


@pytest.mark.parametrize("train", [False, True])
def test_the_stages_of_profiling_add_up_to_all_of_it(train: bool) -> None:
    share = ProfileShare(100_000, train)
    stages = [("tokenising", 1, 1)]
    if train:
        for layer in range(4):
            stages += [("first round", layer + 1, 4), ("training predictors", layer + 1, 4)]
    stages += [("counting", done, 10) for done in range(11)] + [("reordering rows", 1, 4)]
    found = [share.after(*stage) for stage in stages]
    assert found == sorted(found) and found[0] == 0 and found[-1] == 1
    assert share.after("counting", 10, 10) == pytest.approx(1.0)


def test_training_is_most_of_profiling(llama_directory) -> None:
    from hybrid.store.files import ModelFiles

    spec: ModelSpec = ModelFiles.open_files(llama_directory).spec
    counted, trained = (profile_seconds(spec, 10**6, 10_000, train, 1e9) for train in (False, True))
    assert counted == pytest.approx(20.0)
    assert trained > counted


def test_times_are_told_no_more_exactly_than_they_are_known() -> None:
    assert time_left(None) == time_left(0.0) == ""
    assert [time_left(seconds) for seconds in (0.2, 61, 700, 9000)] == [
        "about 1 s left",
        "about 61 s left",
        "about 12 min left",
        "about 2.5 h left",
    ]
