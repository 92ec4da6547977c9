"""What goes wrong in the middle of a step is a clear error: nothing hangs, all is given back, the next one works."""

import os
import signal
import threading
import time
import warnings
from array import array
from pathlib import Path

import pytest
import torch

from hybrid.runtime import loader
from hybrid.runtime.sampler import NumericalError
from profiler.artifacts import UserError

PROMPT, TOKENS = list(range(5, 14)), 3
both_ways = pytest.mark.parametrize("recorded", [True, False])


def threads():
    return {int(folder.name) for folder in Path("/proc/self/task").iterdir()}


def assert_ended(before):
    """No thread is left that was not there; the system lists one for a moment after it was joined."""
    for _ in range(100):
        if threads() <= before:
            return
        time.sleep(0.02)
    raise AssertionError(f"{len(threads() - before)} threads are left")


@pytest.fixture
def open_dense(open_stand_in, split_plan, without_recorded_step):
    """`open_dense(recorded, **options)`: the demo in dense mode over both units; no thread of theirs is left."""
    before, opened = threads(), []

    def open_one(recorded=True, **options):
        engine = open_stand_in(split_plan, "dense", **options)
        opened.append(engine)
        if not recorded:
            without_recorded_step(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()
        assert not any(unit.used for unit in engine.machine.units.values())
    assert_ended(before)
    assert "hybrid-lane" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def check_works(complete):
    """`check_works(engine, expected)`: the next request gives what it did, and all pages are free again."""

    def check(engine, expected):
        assert engine.pages.free == engine.pages.total
        assert complete(engine, [PROMPT], TOKENS) == expected
        assert engine.pages.free == engine.pages.total

    return check


def far_layers(engine):
    found = [layer for layer in engine.machine.scheduler.layers if layer.far_banks and layer.near_banks]
    assert found
    return found


def fail_in_recorded_step(engine, side):
    """The number that has the step fail: 1 with an error, 2 for want of memory."""
    how = array("q", [0])
    programs = engine.machine.recorded._programs
    programs[-1 if side == "far" else 0]._fail(how.buffer_info()[0])
    return how


@pytest.mark.parametrize(("number", "error"), [(1, RuntimeError), (2, MemoryError)])
@pytest.mark.parametrize("side", ["far", "near"])
def test_an_operator_of_a_recorded_step_fails(open_dense, complete, check_works, side, number, error):
    engine = open_dense()
    expected, how = complete(engine, [PROMPT], TOKENS), fail_in_recorded_step(engine, side)
    for _ in range(3):
        how[0] = number
        with pytest.raises(error):
            complete(engine, [PROMPT], TOKENS)
        with pytest.raises(error):
            engine.logits(PROMPT)
        how[0] = 0
        check_works(engine, expected)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError, SystemExit])
@pytest.mark.parametrize("side", ["far", "near"])
def test_an_operator_on_a_units_thread_fails(open_dense, complete, check_works, monkeypatch, side, error):
    engine = open_dense(recorded=False)
    expected, unit = complete(engine, [PROMPT], TOKENS), getattr(far_layers(engine)[0], side)

    def fail(*arguments, **named):
        raise error("as a test wanted")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(unit, "sparse_ffn", fail)
            with pytest.raises(UserError if error is torch.OutOfMemoryError else error):
                complete(engine, [PROMPT], TOKENS)
        check_works(engine, expected)


@both_ways
def test_a_number_that_is_none_comes_from_the_other_unit(open_dense, complete, check_works, recorded):
    engine = open_dense(recorded, mmap=False)
    expected, (rows, _) = complete(engine, [PROMPT], TOKENS), far_layers(engine)[0].far_banks[0].memory
    kept = rows[0].clone()
    rows[0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        complete(engine, [PROMPT], TOKENS)
    rows[0] = kept
    check_works(engine, expected)


def interrupt_soon():
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@both_ways
def test_an_interrupt_ends_a_step_in_the_middle(open_dense, complete, check_works, recorded):
    expected = complete(open_dense(recorded), [PROMPT], TOKENS)
    engine = open_dense(recorded, slowdown=dict.fromkeys(("gpu", "cpu"), 60.0 if recorded else 4.0))
    pools = [unit.pool for unit in engine.machine.units.values()]
    before = sum(pool.waits for pool in pools)
    engine.hidden_states(PROMPT[:8])
    whole = sum(pool.waits for pool in pools) - before
    computed = []
    for _ in range(5):
        timer = interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            while True:
                before = sum(pool.waits for pool in pools)
                engine.hidden_states(PROMPT[:8])
        timer.join()
        computed.append(sum(pool.waits for pool in pools) - before)
    assert max(computed) <= whole, "one may come between a step and the next"
    assert min(computed) < whole
    check_works(engine, expected)


def test_an_interrupt_reaches_a_generation(open_dense, complete, check_works):
    engine = open_dense(slowdown={"gpu": 20.0, "cpu": 20.0})
    expected, timer = complete(engine, [PROMPT], TOKENS), interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        while True:
            complete(engine, [PROMPT], 100)
    timer.join()
    check_works(engine, expected)


def test_a_model_is_closed_while_work_that_was_given_up_is_under_way(open_dense):
    engine = open_dense(recorded=False, slowdown={"cpu": 100.0})
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        while True:
            engine.hidden_states(PROMPT)
    timer.join()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.hidden_states(PROMPT)


@both_ways
def test_a_child_of_a_fork_is_told_that_the_other_units_thread_was_lost(open_dense, complete, check_works, recorded):
    engine = open_dense(recorded)
    expected = complete(engine, [PROMPT], TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(2):
                try:
                    complete(engine, [PROMPT], TOKENS)
                except RuntimeError as error:
                    status = 0 if "fork" in str(error) and engine.pages.free == engine.pages.total else 2
            engine.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    check_works(engine, expected)


@pytest.mark.parametrize("part", ["record", "guard", "Scheduler"])
def test_a_model_that_cannot_be_opened_leaves_no_thread(open_dense, monkeypatch, part):
    before = threads()

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(loader, part, fail)
    with pytest.raises(MemoryError):
        open_dense()
    assert_ended(before)
    monkeypatch.undo()
    assert open_dense().logits(PROMPT).isfinite().all()
