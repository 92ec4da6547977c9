"""The lane hands work over, keeps failures, and never hangs."""

import threading

import pytest
import torch

from hybrid.runtime.lane import ThreadLane


@pytest.fixture
def lane():
    lane = ThreadLane()
    yield lane
    lane.close()


def test_work_runs_on_another_thread_while_the_caller_goes_on(lane):
    started, release = threading.Event(), threading.Event()
    names = []

    def work():
        names.append(threading.current_thread().name)
        started.set()
        assert release.wait(10)
        return torch.ones(1)

    lane.submit(work)
    assert started.wait(10), "the worker starts before anyone joins"
    release.set()
    assert lane.join().item() == 1
    assert names == ["hybrid-lane"]


def test_a_failure_completes_the_hand_over_and_is_raised_by_join(lane):
    def fail():
        raise ValueError("the other side failed")

    lane.submit(fail)
    with pytest.raises(ValueError, match="the other side failed"):
        lane.join()
    lane.submit(lambda: torch.zeros(2))
    assert lane.join().shape == (2,)


def test_even_an_exit_in_the_worker_reaches_the_caller(lane):
    def leave():
        raise SystemExit(3)

    lane.submit(leave)
    with pytest.raises(SystemExit):
        lane.join()


def test_close_waits_for_what_was_submitted_and_later_work_is_refused():
    others = set(threading.enumerate())
    lane, done = ThreadLane(), []

    def work():
        done.append(True)
        return torch.zeros(1)

    lane.submit(work)
    lane.close()
    assert done == [True]
    assert "hybrid-lane" not in {t.name for t in set(threading.enumerate()) - others}
    other = ThreadLane()
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.submit(work)
