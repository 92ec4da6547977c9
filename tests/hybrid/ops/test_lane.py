"""Programs handed over to a lane: both sums, the seconds of each side, failures of either, life after fork."""

import os
import time
import warnings
from array import array
from collections.abc import Callable

import pytest
import torch

from hybrid.ops import cpu
from profiler.matrix import Matrix

RunProgram = Callable[..., float]
WIDTH, OUTPUTS = 64, 300


class Split:
    """Two products of the same input, of which one goes over a lane, and their sum."""

    def __init__(
        self, lane: cpu.Lane, near: cpu.Pool, far: cpu.Pool, outputs: int = OUTPUTS, overlap: bool = True
    ) -> None:
        self.x = torch.randn(cpu.MAX_TOKENS, WIDTH)
        self.weights = [Matrix.of(torch.randn(outputs, WIDTH).half()) for _ in range(2)]
        self.parts = [torch.zeros(cpu.MAX_TOKENS, outputs) for _ in range(2)]
        self.y = torch.zeros(cpu.MAX_TOKENS, outputs)
        matrices = [cpu.matrix_arguments(w, None, y) for w, y in zip(self.weights, self.parts, strict=True)]
        self.program, self.far = cpu.Program(), cpu.Program()
        self.far.mark(7)
        self.far.linear(far, self.x.data_ptr(), WIDTH, [matrices[1]])
        self.program.computed_by(near)
        self.program.mark(7)
        self.program.hand_over(lane, self.far)
        if not overlap:
            self.program.wait(lane)
        self.program.linear(near, self.x.data_ptr(), WIDTH, [matrices[0]])
        self.program.join(lane)
        self.program.add(self.parts[0].data_ptr(), self.parts[1].data_ptr(), outputs, self.y.data_ptr())

    def check(self, run_program: RunProgram, tokens: int) -> None:
        self.y.zero_()
        run_program(self.program, tokens)
        expected = [cpu.linear(cpu.Pool(1), self.x, weight) for weight in self.weights]
        assert torch.equal(self.y[:tokens], (expected[0] + expected[1])[:tokens])


@pytest.fixture
def broken() -> cpu.Pool:
    """A pool whose operators fail: the process has no such core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads are not kept on cores here")
    return cpu.Pool(1, 1.0, [1023])


@pytest.mark.parametrize("threads", [1, 3])
def test_both_sides_are_computed(run_program: RunProgram, threads: int) -> None:
    lane = cpu.Lane()
    splits = [Split(lane, cpu.Pool(threads), cpu.Pool(1)) for _ in range(3)]
    for i in range(300):
        splits[i % 3].check(run_program, 1 + i % cpu.MAX_TOKENS)
    near, far, wait, smaller, hidden = splits[0].program.overlap
    assert near > 0
    assert wait > 0
    assert 0 <= hidden <= smaller == min(near, far)
    assert splits[0].program.seconds["waiting"] >= wait
    assert splits[0].far.overlap == (0.0,) * 5


def test_a_second_device_of_controllable_delay_computes_at_the_same_time(run_program: RunProgram) -> None:
    """Both sides linger for milliseconds, 99 times as long as they compute."""
    lane, pools = cpu.Lane(), (cpu.Pool(1, 100.0), cpu.Pool(1, 100.0))
    for _ in range(500):  # far more often than it takes, unless others never leave two cores of this machine alone
        time.sleep(0.01)
        split = Split(lane, *pools, outputs=5000)
        took = run_program(split.program, 1)
        near, far, _, smaller, hidden = split.program.overlap
        if hidden > 0.5 * smaller and took < 0.9 * (near + far):
            break
    else:
        raise AssertionError(
            f"{hidden / smaller:.0%} of the smaller side were hidden, {took:.3f} of {near + far:.3f} s"
        )
    split = Split(lane, *pools, outputs=5000, overlap=False)
    took = run_program(split.program, 1)
    near, far, _, smaller, hidden = split.program.overlap
    assert hidden == 0 < smaller
    assert took >= near + far


def test_what_is_noted_of_a_run(run_program: RunProgram) -> None:
    near, far = cpu.Pool(1), cpu.Pool(1)
    split = Split(cpu.Lane(), near, far)
    split.check(run_program, 1)
    assert split.program.notes == split.far.notes == []
    split.program.note(True)
    before = time.perf_counter()
    split.check(run_program, 1)
    after = time.perf_counter()
    kinds = [(kind, layer, pool) for kind, layer, pool, _, _ in split.program.notes]
    expected = ["hand-over", "linear", "waiting", "sums"]
    assert kinds == [(kind, 7, near) for kind in expected]
    assert [note[:3] for note in split.far.notes] == [("linear", 7, far)]
    for notes in (split.program.notes, split.far.notes):
        ends = [end for note in notes for end in note[3:]]
        assert ends == sorted(ends)
        assert before <= ends[0] <= ends[-1] <= after
    split.program.note(False)
    split.check(run_program, 1)
    assert split.program.notes == split.far.notes == []


def test_a_run_that_fails_notes_what_it_got_to(run_program: RunProgram, broken: cpu.Pool) -> None:
    split = Split(cpu.Lane(), broken, cpu.Pool(1))
    split.program.note(True)
    with pytest.raises(RuntimeError, match="cannot run on the cores"):
        run_program(split.program, 1)
    assert [note[0] for note in split.program.notes] == ["hand-over"]


def test_the_other_side_may_use_the_same_pool(run_program: RunProgram) -> None:
    pool = cpu.Pool(2)
    split = Split(cpu.Lane(), pool, pool)
    for tokens in (1, 7):
        split.check(run_program, tokens)


def test_each_side_is_slowed_by_its_own_ratio(run_program: RunProgram) -> None:
    near, far = cpu.Pool(1), cpu.Pool(1, 4.0)
    Split(cpu.Lane(), near, far).check(run_program, 2)
    assert (near.waits, far.waits) == (0, 1)
    assert far.waited_seconds >= 3 * far.worked_seconds - 1e-9


def test_a_failure_of_the_other_side_is_raised_and_the_lane_goes_on(run_program: RunProgram, broken: cpu.Pool) -> None:
    lane = cpu.Lane()
    failing, working = Split(lane, cpu.Pool(1), broken), Split(lane, cpu.Pool(1), cpu.Pool(1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="cannot run on the cores"):
            run_program(failing.program, 1)
        working.check(run_program, 2)


def test_a_failure_of_this_side_leaves_the_lane_free(run_program: RunProgram, broken: cpu.Pool) -> None:
    lane = cpu.Lane()
    for far in (cpu.Pool(1), broken):
        failing, working = Split(lane, broken, far), Split(lane, cpu.Pool(1), cpu.Pool(1))
        for _ in range(3):
            with pytest.raises(RuntimeError, match="cannot run on the cores"):
                run_program(failing.program, 1)
            working.check(run_program, 2)


def test_a_failure_of_this_side_has_the_other_one_stop(run_program: RunProgram, broken: cpu.Pool) -> None:
    lane, slow = cpu.Lane(), cpu.Pool(1, 100.0)
    failing = Split(lane, broken, slow, outputs=5000)
    stopped = 0
    for _ in range(20):  # on a busy machine it may have waited to its end before this side comes to fail
        before = slow.waits
        with pytest.raises(RuntimeError, match="cannot run on the cores"):
            run_program(failing.program, 1)
        stopped += slow.waits == before
    assert stopped
    before = slow.waits
    Split(lane, cpu.Pool(1), slow).check(run_program, 1)
    assert slow.waits == before + 1


def test_a_program_is_not_handed_over_to_itself() -> None:
    program = cpu.Program()
    with pytest.raises(ValueError, match="to itself"):
        program.hand_over(cpu.Lane(), program)


def test_a_program_keeps_its_lane_and_the_other_program(run_program: RunProgram) -> None:
    split = Split(cpu.Lane(), cpu.Pool(2), cpu.Pool(2))
    del split.far
    split.check(run_program, 3)


def test_a_child_is_told_that_the_lane_was_lost(run_program: RunProgram) -> None:
    split, zero = Split(cpu.Lane(), cpu.Pool(1), cpu.Pool(1)), array("q", (0,))
    split.check(run_program, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            split.program.run(1, *(zero.buffer_info()[0],) * 3)
        except RuntimeError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    split.check(run_program, 1)
