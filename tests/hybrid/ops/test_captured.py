"""Calls that are issued together: in their order, once before they are captured, and timed."""

import torch

from hybrid.ops.captured import ROUNDS, Captured


def test_calls_are_made_in_their_order_and_once_before():
    made = []
    captured = Captured([lambda: made.append("first"), lambda: made.append("second")], torch.device("cpu"))
    assert made == ["first", "second"]
    captured()
    captured.complete()
    assert made == ["first", "second"] * 3


def test_seconds_are_those_of_one_pass(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hybrid.ops.captured.time.perf_counter", lambda: now[0])

    def work():
        now[0] += 0.25

    captured = Captured([work, work], torch.device("cpu"))
    assert captured.seconds(least=10.0) == 0.5
    assert now[0] == 0.5 * (3 + 20), f"{ROUNDS} rounds of 4 passes, and three before"
