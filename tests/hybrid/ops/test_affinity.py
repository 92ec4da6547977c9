"""Pools with cores of their own: where threads are while they compute, and that the caller's go back."""

import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hybrid.ops import cpu
from profiler.matrix import Matrix

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not kept on cores here")
RunProgram = Callable[..., float]
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FIRST, LAST = ALLOWED[0], ALLOWED[-1]


def threads_of_process() -> set[int]:
    return {int(folder.name) for folder in Path("/proc/self/task").iterdir()}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(cpu.MAX_TOKENS, 64)


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """That of the caller, which no test may change."""
    before = os.sched_getaffinity(0)
    yield before
    assert os.sched_getaffinity(0) == before


def product(pool: cpu.Pool, x: torch.Tensor, outputs: int = 300) -> tuple[cpu.Program, list[object]]:
    """A program that multiplies on a pool, and what it needs."""
    weight, y, program = Matrix.of(torch.randn(outputs, 64).half()), torch.zeros(16, outputs), cpu.Program()
    program.linear(pool, x.data_ptr(), 64, [cpu.matrix_arguments(weight, None, y)])
    return program, [weight, y, x]


def test_workers_stay_on_the_pools_cores(affinity: set[int], x: torch.Tensor, run_program: RunProgram) -> None:
    before = threads_of_process()
    pool = cpu.Pool(3, 1.0, [LAST])
    workers = threads_of_process() - before
    assert pool.cores == [LAST]
    assert len(workers) == 2
    program, _kept = product(pool, x)
    run_program(program, 4)
    assert all(os.sched_getaffinity(worker) == {LAST} for worker in workers)


def test_a_lanes_thread_stays_on_the_cores_of_the_pool_that_it_worked_for(
    affinity: set[int], x: torch.Tensor, run_program: RunProgram
) -> None:
    before = threads_of_process()
    lane, main = cpu.Lane(), cpu.Program()
    (worker,) = threads_of_process() - before
    for core in (FIRST, LAST):
        far, _kept = product(cpu.Pool(1, 1.0, [core]), x)
        main = cpu.Program()
        main.hand_over(lane, far)
        main.join(lane)
        run_program(main, 2)
        assert os.sched_getaffinity(worker) == {core}


def test_the_caller_is_on_the_pools_cores_while_it_computes(affinity: set[int], x: torch.Tensor) -> None:
    pools = [cpu.Pool(1, 1.0, [core]) for core in (FIRST, LAST)]
    weight, caller, stop = Matrix.of(torch.randn(2000, 64).half()), threading.get_native_id(), threading.Event()
    programs = [product(pool, x, 2000) for pool in pools]
    zero, seen = array("q", (0,) * 16), set()

    def watch() -> None:
        while not stop.is_set():
            seen.add(frozenset(os.sched_getaffinity(caller)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    wanted = {frozenset({FIRST}), frozenset({LAST})}
    try:
        for _ in range(5000):  # far more often than it takes
            for program, _kept in programs:
                program.run(16, *(zero.buffer_info()[0],) * 3)
            cpu.linear(pools[0], x, weight)
            if wanted <= seen:
                break
    finally:
        stop.set()
        watcher.join()
    assert wanted <= seen <= wanted | {frozenset(affinity)}


def test_a_program_moves_between_the_cores_of_its_units(
    affinity: set[int], x: torch.Tensor, run_program: RunProgram
) -> None:
    program, y = cpu.Program(), torch.zeros(cpu.MAX_TOKENS, 64)
    for core in (FIRST, LAST, FIRST):
        program.computed_by(cpu.Pool(1, 1.0, [core]))
        program.add(x.data_ptr(), y.data_ptr(), 64, y.data_ptr())
    run_program(program, 3)
    assert torch.equal(y[:3], x[:3] + x[:3] + x[:3])


def test_the_caller_goes_back_after_a_failure(affinity: set[int], x: torch.Tensor, run_program: RunProgram) -> None:
    program, y = cpu.Program(), torch.zeros(cpu.MAX_TOKENS, 64)
    for core in (FIRST, 1023):  # the process has no such core
        program.computed_by(cpu.Pool(1, 1.0, [core]))
        program.add(x.data_ptr(), y.data_ptr(), 64, y.data_ptr())
    with pytest.raises(RuntimeError, match="cannot run on the cores"):
        run_program(program, 1)


def test_a_pool_whose_workers_cannot_run_there_is_not_made() -> None:
    before = threads_of_process()
    with pytest.raises(RuntimeError, match="cannot run on the cores"):
        cpu.Pool(3, 1.0, [1023])
    assert threads_of_process() == before


@pytest.mark.parametrize("core", [-1, 1024, 1 << 30])
def test_numbers_that_are_no_cores(core: int) -> None:
    with pytest.raises(ValueError, match="numbers of CPUs"):
        cpu.Pool(1, 1.0, [0, core])
