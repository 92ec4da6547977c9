"""Stops a process at the N-th system call that writes: by ptrace(2) and seccomp(2), x86-64 Linux.

What counts: writes but those to stdout and stderr, files opened for writing, renames, folders made, files removed,
fsync, locks. With its threads and children, in the order in which the kernel sees them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from knocks.pool import in_child, kill_session

TRACEME, CONTINUE, PEEK, SET_OPTIONS = 0, 7, 3, 0x4200
OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # follow fork, vfork and clone; stop where the filter says; die with us
SECCOMP_STOP = signal.SIGTRAP | (7 << 8)
WALL = 0x40000000
FIRST, THIRD, NUMBER = 112, 96, 120  # offsets of rdi, rdx and orig_rax in the kernel's `user`
WRITES = (1, 18, 20, 296)
OPENAT, OPEN_TO_WRITE = 257, os.O_WRONLY | os.O_RDWR | os.O_CREAT
OTHERS = (73, 74, 75, 76, 77, 82, 83, 84, 86, 87, 88, 258, 263, 264, 265, 285, 316, 326)
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
LOAD_NUMBER, IF_EQUAL, RETURN, ALLOW, TRACE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x7FF00000

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
        _stop_at((*WRITES, OPENAT, *OTHERS))
        os.kill(os.getpid(), signal.SIGSTOP)
        work()

    child = in_child(stopped, folder / "stdout", folder / "stderr", None)
    os.waitpid(child, 0)
    _ask(SET_OPTIONS, child, OPTIONS)
    late = threading.Event()
    watch = threading.Timer(seconds, lambda: (late.set(), kill_session(child)))
    watch.start()
    try:
        status, writes = _followed(child, at, action or (lambda leader: os.kill(leader, signal.SIGKILL)))
    finally:
        watch.cancel()
    kill_session(child)
    return Traced(None if late.is_set() else status, writes)


def _followed(child: int, at: int | None, action: Callable[[int], None]) -> tuple[int, int]:
    """Status of a process, and its writes, from its first stop to its end."""
    writes = 0
    _ask(CONTINUE, child)
    while True:
        thread, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                return status, writes
            continue
        if status >> 8 == SECCOMP_STOP and _writes(thread):
            writes += 1
            if writes == at:
                action(child)
        caught = os.WSTOPSIG(status)
        _ask(CONTINUE, thread, 0 if caught in (signal.SIGTRAP, signal.SIGSTOP) else caught)


def _stop_at(numbers: Sequence[int]) -> None:
    """Have this process, and what comes of it, stop before these system calls, by a filter of seccomp(2)."""
    program = [(LOAD_NUMBER, 0, 0, 0)]
    program += [(IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, TRACE)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer)))
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, ctypes.addressof(whole), 0, 0)):
        if _libc.prctl(*(ctypes.c_ulong(argument) for argument in arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


def _writes(thread: int) -> bool:
    number = _ask(PEEK, thread, 0, NUMBER)
    if number in WRITES:
        return _ask(PEEK, thread, 0, FIRST) not in (1, 2)
    if number == OPENAT:
        return bool(_ask(PEEK, thread, 0, THIRD) & OPEN_TO_WRITE)
    return number in OTHERS


def _ask(request: int, thread: int, data: int = 0, address: int = 0) -> int:
    return int(_libc.ptrace(request, thread, address, data))
