"""How a command ends: its exit code, and what becomes of mistakes, interrupts, and readers that went away.

Nobody is shown a traceback for what they did themselves.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from hybrid import display
from profiler.artifacts import UserError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


LOST_SECONDS = 0.01  # until an interrupt comes again that a callback lost


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    ERROR = 1  # which the message explains
    USAGE = 2  # the command line makes no sense
    INTERRUPTED = 130


class UsageError(UserError):
    """A command line that makes no sense: options that contradict each other, or one that is missing beside another."""


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process: one line for a mistake of the user's, none for an interrupt.

    Where nobody reads stdout any more the command ends there, and well: `hybrid ... | head` has what it wanted.
    """
    try:
        with interruptible() as interrupted:
            code = _outcome(command, interrupted)
    except KeyboardInterrupt:  # another one, while the first was dealt with
        code = Exit.INTERRUPTED
    sys.exit(code)


def _outcome(command: Callable[[], None], interrupted: Callable[[], bool]) -> int:
    try:
        command()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except UserError as error:
        display.note(f"hybrid: {error}")
        return Exit.USAGE if isinstance(error, UsageError) else Exit.ERROR
    except MemoryError:
        display.note("hybrid: out of memory; close something, or use a smaller --context")
        return Exit.ERROR
    except SystemExit as error:  # typer's: usage, --help, and what became of a pipe that broke while it wrote
        if _pipe_broke(error.__context__):
            return Exit.DONE
        return error.code if isinstance(error.code, int) else Exit.ERROR
    except BaseException as error:
        if interrupted():  # a library took the interrupt for an error of its own
            return Exit.INTERRUPTED
        if _pipe_broke(error):
            return Exit.DONE
        if isinstance(error, OSError) and error.filename is not None:  # that went, or fails, where nobody foresaw it
            display.note(f"hybrid: {_told(error)}")
            return Exit.ERROR
        raise
    return Exit.DONE


def _pipe_broke(error: BaseException | None) -> bool:
    """Whether what was raised is that nobody reads stdout or stderr; what is still unwritten is dropped then."""
    if not isinstance(error, BrokenPipeError):
        return False
    broken = [number for number in (1, 2) if _without_reader(number)]
    for number in broken:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, number)  # Python flushes its streams once more when it ends
        os.close(nothing)
    return bool(broken)


def _told(error: OSError) -> str:
    """What the operating system said, and of which file."""
    where = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)[:300]
    return (
        f"{where}: {error.strerror}; see that files and folders stay where they are while hybrid uses them, then try "
        "again"
    )


def _without_reader(number: int) -> bool:
    watch = select.poll()
    watch.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """An interrupt raises KeyboardInterrupt, again if a callback of a library's lost it; yields whether one came."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def again(lost: UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(LOST_SECONDS, signal.pthread_kill, [main, signal.SIGINT]).start()
        else:
            before(lost)

    main = threading.main_thread().ident or 0
    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        with _handling(interrupt):
            yield lambda: bool(came)
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around imports that take seconds, before anything was begun: an interrupt ends the process there and then.

    torch drops a KeyboardInterrupt that meets it half imported, or aborts.
    """
    with _handling(lambda number, frame: os._exit(Exit.INTERRUPTED)):
        yield


def explain_bus_errors() -> None:
    """From now on a file that shrinks while it is mapped, whoever mapped it, ends the process with one line and 1."""
    with contextlib.suppress(ImportError):  # a broken extension is told of by what needs it
        from hybrid.ops import _native

        _native.explain_bus_errors()


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Interrupts go to a handler, in the main thread of a process that hears them at all."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
