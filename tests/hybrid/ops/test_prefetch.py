"""Named rows of a mapped file are read when they are asked for, and others are not."""

import ctypes
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hybrid.ops import _native, cpu

RunProgram = Callable[..., float]
ROWS, STRIDE = 600, 3 * mmap.PAGESIZE


class Mapped:
    """A file of rows that is mapped, and which of its pages are in memory."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(os.urandom(ROWS * STRIDE))
        self._file = path.open("rb")
        os.fsync(self._file.fileno())
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._map.madvise(mmap.MADV_RANDOM)
        self.rows = torch.frombuffer(self._map, dtype=torch.uint8).view(ROWS, STRIDE)

    def forget(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def in_memory(self) -> torch.Tensor:
        """bool `[rows]`: those that are, all of their pages."""
        found = torch.zeros(ROWS * STRIDE // mmap.PAGESIZE, dtype=torch.uint8)
        arguments = (ctypes.c_void_p(self.rows.data_ptr()), ctypes.c_size_t(ROWS * STRIDE))
        assert ctypes.CDLL(None).mincore(*arguments, ctypes.c_void_p(found.data_ptr())) == 0
        return (found & 1).bool().view(ROWS, -1).all(1)

    def close(self) -> None:
        del self.rows
        self._map.close()
        self._file.close()


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    """A file of which nothing is in memory."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("the system is not told to forget files here")
    found = Mapped(tmp_path / "rows")
    found.forget()
    if found.in_memory().any():
        pytest.skip("the system does not forget files of this file system")
    yield found
    found.close()


def request(program: cpu.Program, mapped: Mapped, named: torch.Tensor, lane: cpu.Lane | None = None) -> None:
    program.request(mapped.rows.data_ptr(), STRIDE, STRIDE, ROWS, named.data_ptr(), named.shape[1], lane)


def wait_for(mapped: Mapped, rows: torch.Tensor) -> None:
    """Until rows are in memory; nobody waits for them but here."""
    for _ in range(1000):
        if mapped.in_memory()[rows].all():
            return
        time.sleep(0.01)
    raise AssertionError("rows that were asked for are not read")


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_rows_that_some_token_names_are_read(
    run_program: RunProgram, mapped: Mapped, tokens: int, beside: bool
) -> None:
    named = torch.zeros(cpu.MAX_TOKENS, ROWS + 3, dtype=torch.bool)  # of a layer that has other rows too
    wanted = torch.randperm(ROWS)[:60]
    for i, row in enumerate(wanted):
        named[i % tokens, row] = True
    named[tokens:] = True  # not of this step
    program, lane = cpu.Program(), cpu.Lane() if beside else None
    request(program, mapped, named, lane)
    run_program(program, tokens)
    wait_for(mapped, wanted)
    assert program.requested >= len(wanted) * STRIDE
    others = torch.ones(ROWS, dtype=torch.bool)
    others[wanted] = False
    assert mapped.in_memory()[others].float().mean() < 0.2
    for _ in range(50):
        run_program(program, tokens)
    assert program.requested < 2 * len(wanted) * STRIDE, "what is in memory is not read again"


def test_a_whole_range_is_read(mapped: Mapped) -> None:
    assert _native.ask_for(mapped.rows.data_ptr(), ROWS * STRIDE) >= ROWS * STRIDE
    wait_for(mapped, torch.arange(ROWS))
    assert _native.ask_for(mapped.rows.data_ptr(), ROWS * STRIDE) == 0


def test_memory_that_is_no_file_is_left_alone(run_program: RunProgram) -> None:
    rows, named, program = (
        torch.zeros(ROWS, STRIDE, dtype=torch.uint8),
        torch.ones(cpu.MAX_TOKENS, ROWS).bool(),
        cpu.Program(),
    )
    program.request(rows.data_ptr(), STRIDE, STRIDE, ROWS, named.data_ptr(), ROWS)
    run_program(program, 2)
    assert program.requested == 0


def test_a_child_asks_by_itself(run_program: RunProgram, mapped: Mapped) -> None:
    """The lane is lost in a fork, and is not needed."""
    named, program = torch.zeros(cpu.MAX_TOKENS, ROWS, dtype=torch.bool), cpu.Program()
    named[0, :40] = True
    request(program, mapped, named, cpu.Lane())
    run_program(program, 1)
    wait_for(mapped, torch.arange(40))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            named[0] = True
            zero = array("q", (0,))
            program.run(1, *(zero.buffer_info()[0],) * 3)
            wait_for(mapped, torch.arange(ROWS))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("rows", "row_bytes", "stride", "message"),
    [(0, 8, 8, "n_rows"), (10, 16, 8, "hold a row"), (10, 0, 8, "hold a row"), (10, 8, 1 << 40, "hold a row")],
)
def test_sizes_that_make_no_sense(rows: int, row_bytes: int, stride: int, message: str) -> None:
    memory = torch.zeros(64)
    with pytest.raises(ValueError, match=message):
        cpu.Program().request(memory.data_ptr(), stride, row_bytes, rows, memory.data_ptr(), 10)
