"""Stops a process at the N-th system call that writes: by ptrace(2), x86-64 Linux.

What counts: writes but those to stdout and stderr, files opened for writing, renames, folders made, files removed,
fsync, locks. With its threads and children, in the order in which the kernel sees them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knocks.pool import in_child, kill_session

TRACEME, CONTINUE, PEEK, SYSCALL, SET_OPTIONS = 0, 7, 3, 24, 0x4200
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000  # mark system calls; follow fork, vfork and clone; die with the tracer
WALL = 0x40000000
NUMBER, FIRST, THIRD = 120, 112, 96  # offsets of orig_rax, rdi and rdx in the kernel's `user`
WRITES = (1, 18, 20, 296)
OPENAT, OPEN_TO_WRITE = 257, os.O_WRONLY | os.O_RDWR | os.O_CREAT
OTHERS = (73, 74, 75, 76, 77, 82, 83, 84, 86, 87, 88, 258, 263, 264, 265, 285, 316, 326)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Traced:
    """status: of the process, None where it took too long. writes: that it came to make, or that it made until then."""

    status: int | None
    writes: int


def can_trace() -> bool:
    """Whether this machine's processes can be stopped so."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def traced(
    work: Callable[[], None],
    folder: Path,
    seconds: float,
    at: int | None = None,
    action: Callable[[int], None] | None = None,
) -> Traced:
    """Do the work in a process; before its `at`-th write, `action` is called with its id. Without one it is killed."""

    def stopped() -> None:
        _libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()

    child = in_child(stopped, folder / "stdout", folder / "stderr", None)
    os.waitpid(child, 0)
    _ask(SET_OPTIONS, child, OPTIONS)
    _ask(SYSCALL, child)
    until, writes, entered, how = time.monotonic() + seconds, 0, set[int](), SYSCALL
    while True:
        thread, status = os.waitpid(-1, WALL | os.WNOHANG)
        if not thread:
            if time.monotonic() > until:
                kill_session(child)
                os.waitpid(child, WALL)
                return Traced(None, writes)
            time.sleep(0.0002)
            continue
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                kill_session(child)
                return Traced(status, writes)
            continue
        caught, deliver = os.WSTOPSIG(status), 0
        if caught == signal.SIGTRAP | 0x80:
            entered ^= {thread}
            if thread in entered and how == SYSCALL and _writes(thread):
                writes += 1
                if writes == at:
                    if action is None:
                        os.kill(child, signal.SIGKILL)
                        continue
                    action(child)
                    how = CONTINUE
        elif caught not in (signal.SIGTRAP, signal.SIGSTOP):
            deliver = caught
        _ask(how, thread, deliver)


def _writes(thread: int) -> bool:
    number = _ask(PEEK, thread, 0, NUMBER)
    if number in WRITES:
        return _ask(PEEK, thread, 0, FIRST) not in (1, 2)
    if number == OPENAT:
        return bool(_ask(PEEK, thread, 0, THIRD) & OPEN_TO_WRITE)
    return number in OTHERS


def _ask(request: int, thread: int, data: int = 0, address: int = 0) -> int:
    return int(_libc.ptrace(request, thread, address, data))
