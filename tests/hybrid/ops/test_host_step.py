"""Programs that a device's driver calls: the same bits as a run, failures kept and raised once, an end of it, forks."""

import ctypes
import os
import threading
import time
import warnings
from array import array

import pytest
import torch

from hybrid.ops import cpu
from profiler.matrix import Matrix

WIDTH, OUTPUTS = 64, 300
call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # as a driver does, without the interpreter lock


class Product:
    """A product as a host function, on a pool."""

    def __init__(self, pool: cpu.Pool, host: cpu.HostStep) -> None:
        self.x, self.y = torch.randn(cpu.MAX_TOKENS, WIDTH), torch.zeros(cpu.MAX_TOKENS, OUTPUTS)
        self.weight = Matrix.of(torch.randn(OUTPUTS, WIDTH).half())
        program = cpu.Program()
        program.linear(pool, self.x.data_ptr(), WIDTH, [cpu.matrix_arguments(self.weight, None, self.y)])
        self.function = cpu.HostFunction(host, program)

    def check(self, tokens: int) -> None:
        expected = cpu.linear(cpu.Pool(1), self.x[:tokens], self.weight)
        assert torch.equal(self.y[:tokens], expected)
        assert not self.y[tokens:].any()
        self.y.zero_()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.tensor([1])


@pytest.fixture
def host(tokens: torch.Tensor) -> cpu.HostStep:
    zeros = torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64)
    host = cpu.HostStep(tokens.data_ptr(), *(zeros.data_ptr(),) * 3)
    yield host
    del zeros


@pytest.fixture
def broken() -> cpu.Pool:
    """A pool whose operators fail: the process has no such core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads are not kept on cores here")
    return cpu.Pool(1, 1.0, [1023])


def as_driver(function: cpu.HostFunction) -> None:
    thread = threading.Thread(target=lambda: call(function.function)(function.context))
    thread.start()
    thread.join()


def over_a_lane(function: cpu.HostFunction) -> None:
    lane = cpu.Lane()
    function.submit(lane)
    lane.join()


@pytest.mark.parametrize("run", [cpu.HostFunction.run, as_driver, over_a_lane])
def test_every_way_to_call_it_gives_the_same(run, host: cpu.HostStep, tokens: torch.Tensor) -> None:
    product = Product(cpu.Pool(2), host)
    for count in (1, 7, 16):
        tokens[0] = count
        before, seconds = time.perf_counter(), product.function.seconds
        run(product.function)
        began, ended = product.function.span
        assert before <= began <= ended <= time.perf_counter()
        assert product.function.seconds == pytest.approx(seconds + ended - began)
        host.take_failure()
        product.check(count)


@pytest.mark.parametrize("run", [cpu.HostFunction.run, as_driver, over_a_lane])
def test_a_failure_is_raised_once_and_until_then_nothing_is_computed(run, host, broken) -> None:
    failing, working = Product(broken, host), Product(cpu.Pool(1), host)
    for _ in range(3):
        run(failing.function)
        run(working.function)
        assert not working.y.any()
        with pytest.raises(RuntimeError, match="cannot run on the cores"):
            host.take_failure()
        host.take_failure()
        run(working.function)
        working.check(1)


@pytest.mark.parametrize("count", [0, -1, 17, 1 << 40])
def test_a_number_of_tokens_that_makes_no_sense(host, tokens, count) -> None:
    product = Product(cpu.Pool(1), host)
    tokens[0] = count
    product.function.run()
    with pytest.raises(ValueError, match="1 to 16"):
        host.take_failure()
    assert not product.y.any()


def test_places_are_checked(host) -> None:
    place = torch.zeros(4, dtype=torch.int64).data_ptr()
    for at in range(4):
        for wrong in (0, place + 4):
            places = [place] * 4
            places[at] = wrong
            with pytest.raises(ValueError, match="should be an address"):
                cpu.HostStep(*places)


def test_a_step_that_was_closed_computes_nothing(host) -> None:
    product = Product(cpu.Pool(1), host)
    host.close()
    as_driver(product.function)
    host.take_failure()
    assert not product.y.any()
    host.close()


def test_closing_waits_for_a_call_that_is_under_way(tokens) -> None:
    """A slowed pool lingers after its product: the end of `close` comes after the end of that."""
    zeros = torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64)
    host = cpu.HostStep(tokens.data_ptr(), *(zeros.data_ptr(),) * 3)
    pool = cpu.Pool(1, cpu.MAX_SLOWDOWN)
    product = Product(pool, host)
    thread = threading.Thread(target=product.function.run)
    thread.start()
    while not product.y.any():  # from here on it waits only
        pass
    host.close()
    assert pool.waits == 1
    thread.join()
    product.check(1)


def test_a_function_keeps_its_program_and_its_step(tokens) -> None:
    zeros = torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64)
    product = Product(cpu.Pool(1), cpu.HostStep(tokens.data_ptr(), *(zeros.data_ptr(),) * 3))
    as_driver(product.function)
    product.check(1)


def test_a_child_is_told_that_the_driver_is_its_parents(host) -> None:
    product = Product(cpu.Pool(1), host)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            product.function.run()
            host.take_failure()
        except RuntimeError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    product.function.run()
    product.check(1)


def test_a_lane_runs_a_program_only_with_its_own_step(host) -> None:
    """The arrays of a step are read when a function runs, not when it is made."""
    ids = array("q", range(cpu.MAX_TOKENS))
    table, y = Matrix.of(torch.randn(cpu.MAX_TOKENS, WIDTH).half()), torch.zeros(cpu.MAX_TOKENS, WIDTH)
    count, zeros = torch.tensor([3]), torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64)
    program = cpu.Program()
    address, stride, weight_format, *_ = cpu.matrix_arguments(table)
    program.embed(address, stride, weight_format, WIDTH, y.data_ptr())
    own = cpu.HostStep(count.data_ptr(), ids.buffer_info()[0], *(zeros.data_ptr(),) * 2)
    function = cpu.HostFunction(own, program)
    for first in (0, 5):
        ids[:3] = array("q", range(first, first + 3))
        over_a_lane(function)
        own.take_failure()
        assert torch.equal(y[:3], table.widened(slice(first, first + 3)))
