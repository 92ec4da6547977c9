"""The pool of threads: every task once, failures reported, several callers, life after fork."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybrid.ops import _native, cpu
from hybrid.ops.bank import RowBank


def make_bank() -> tuple[RowBank, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1500, 3 * 64, generator=generator).bfloat16()
    return RowBank(rows, "bf16", 64, True, "relu"), torch.randn(2, 64, generator=generator)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once(threads: int) -> None:
    pool = cpu.Pool(threads)
    assert pool.threads == threads
    for tasks in (0, 1, 2, 7, 31, 32, 33, 80, 1000, 100_000):  # several are claimed at once from 16 a thread on
        assert _native._count_tasks(pool, tasks) == tasks


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failing_task_is_reported_and_the_pool_goes_on(threads: int) -> None:
    pool = cpu.Pool(threads)
    for tasks, failing in ((50, 0), (50, 17), (50, 49), (1000, 1), (1000, 500), (1000, 999)):
        with pytest.raises(RuntimeError, match=f"task {failing} failed"):
            _native._count_tasks(pool, tasks, failing)
    assert _native._count_tasks(pool, 50) == 50


@pytest.mark.parametrize("threads", [0, -1, 1 << 20, 1 << 40])
def test_sizes_that_make_no_sense(threads: int) -> None:
    with pytest.raises(ValueError, match="threads should be"):
        cpu.Pool(threads)


def test_sleeping_workers_wake() -> None:
    pool = cpu.Pool(3)
    for _ in range(5):
        time.sleep(0.02)  # longer than workers watch for work
        assert _native._count_tasks(pool, 200) == 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are not listed here")
def test_a_pool_that_rests_has_no_threads_until_there_is_work() -> None:
    def threads() -> set[str]:
        return {folder.name for folder in Path("/proc/self/task").iterdir()}

    others = threads()
    pool = cpu.Pool(3)
    for _ in range(3):
        assert _native._count_tasks(pool, 50) == 50
        assert len(threads() - others) == 2
        pool.rest()
        pool.rest()
        for _ in range(100):  # the system lists threads for a moment after they were joined
            if not threads() - others:
                break
            time.sleep(0.02)
        assert not threads() - others


def test_an_idle_pool_is_quiet() -> None:
    pool = cpu.Pool(3)
    _native._count_tasks(pool, 100)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1  # seconds of processor time, not a speed
    assert pool.threads == 3


@pytest.mark.parametrize("shared", [False, True])
def test_two_callers_at_once(shared: bool) -> None:
    bank, x = make_bank()
    first = cpu.Pool(2)
    pools = [first, first if shared else cpu.Pool(2)]
    expected, _ = cpu.sparse_ffn(first, bank, x)
    wrong: list[int] = []

    def call(pool: cpu.Pool) -> None:
        for i in range(300):
            if not torch.equal(cpu.sparse_ffn(pool, bank, x)[0], expected):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(pool,)) for pool in pools]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert not wrong


def exit_status_of_child(check: Callable[[], bool]) -> int:
    """Exit status of a forked child: 0 where `check` held. A child that hangs is killed, which is not 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    for _ in range(1000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def test_it_works_after_fork_in_both_processes() -> None:
    bank, x = make_bank()
    pool = cpu.Pool(3)
    expected, _ = cpu.sparse_ffn(pool, bank, x)

    def same_in_child() -> bool:
        again = [cpu.sparse_ffn(pool, bank, x)[0] for _ in range(3)]
        return all(torch.equal(y, expected) for y in again) and exit_status_of_child(same_in_grandchild) == 0

    def same_in_grandchild() -> bool:
        return torch.equal(cpu.sparse_ffn(pool, bank, x)[0], expected)

    assert exit_status_of_child(same_in_child) == 0
    assert torch.equal(cpu.sparse_ffn(pool, bank, x)[0], expected)


def test_threads_of_a_child_may_meet_an_old_pool_at_once() -> None:
    pool = cpu.Pool(3)
    _native._count_tasks(pool, 10)

    def count() -> bool:
        ready, counted = threading.Barrier(4), []

        def call() -> None:
            ready.wait()
            counted.append(_native._count_tasks(pool, 300))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return counted == [300] * 4

    for _ in range(5):
        assert exit_status_of_child(count) == 0


def test_a_pool_may_be_dropped_in_a_child() -> None:
    pools = [cpu.Pool(3)]
    _native._count_tasks(pools[0], 10)

    def drop() -> bool:
        pools.clear()
        return True

    assert exit_status_of_child(drop) == 0


def test_a_fork_while_the_pool_works() -> None:
    pool = cpu.Pool(2)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _native._count_tasks(pool, 5000)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            assert exit_status_of_child(lambda: _native._count_tasks(pool, 500) == 500) == 0
    finally:
        stop.set()
        worker.join()
