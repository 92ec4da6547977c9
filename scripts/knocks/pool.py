"""Commands in processes forked from one that has everything imported: tens of milliseconds a case instead of seconds.

A case is a list of commands of `hybrid`, run one after the other as long as they succeed. What is allowed: exit codes
0, 1 and 2; 1 with a line that begins `hybrid: `. Everything else has a name in `BAD`.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BAD = ("traceback", "crash", "hang", "memory", "silent", "exit", "damage", "remains")
GIB = 1 << 30
ROOM = 6 * GIB  # of address space beyond what the parent has: threads' stacks and torch's arenas take some
RESIDENT = 1 * GIB  # beyond the parent's: no file here has more than a few MB
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Outcome:
    """How a case ended. kind: `done`, `refused`, `usage` or one of `BAD`. said: the end of what it wrote to stderr."""

    kind: str
    code: int | None
    seconds: float
    said: str


@dataclass(frozen=True)
class Limits:
    """seconds: after which a case counts as hanging."""

    seconds: float = 60.0


def run_commands(commands: Sequence[Sequence[str]]) -> None:
    """Each command as its process would run it, until one does not end with 0; ends this process with its code."""
    from hybrid import cli

    code: object = 0
    for command in commands:
        sys.argv = ["hybrid", *command]
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        if code not in (0, None):
            break
    raise SystemExit(code)


def in_child(work: Callable[[], None], stdout: Path, stderr: Path, stdin: Path | None) -> int:
    """Fork, and have the child do the work, beside `stdout`, with its output in files; its id: it leads a session."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a campaign in the background ignores
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for path, flags, number in (
            (stdin or Path(os.devnull), os.O_RDONLY, 0),
            (stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
            (stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 2),
        ):
            opened = os.open(path, flags, 0o644)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(stdout.parent)  # where files with a made-up name go
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            sys.stderr.write(ended.code)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 71
        os._exit(code)


def limited(work: Callable[[], None]) -> Callable[[], None]:
    """The work with an address space that ends some GiB beyond what this process has."""

    def run() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        work()

    return run


def wait(child: int, seconds: float) -> tuple[int, resource.struct_rusage] | None:
    """Status and usage of a child; None, and it is gone with all of its session, where it takes longer."""
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    if not ended:
        kill_session(child)
        os.waitpid(child, 0)
        return None
    _, status, usage = os.wait4(child, 0)
    return status, usage


def kill_session(leader: int) -> bool:
    """Whether anything of a session was still there to be killed."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def run_case(work: Callable[[], None], folder: Path, limits: Limits, stdin: Path | None = None) -> Outcome:
    """Do the work in a process of its own, within limits; its output stays in `folder`."""
    stdout, stderr = folder / "stdout", folder / "stderr"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    child = in_child(limited(work), stdout, stderr, stdin)
    found = wait(child, limits.seconds)
    seconds = time.monotonic() - started
    said = stderr.read_text(errors="replace") if stderr.exists() else ""
    if found is None:
        return Outcome("hang", None, seconds, said[-2000:])
    kill_session(child)
    code = os.waitstatus_to_exitcode(found[0])
    kind = judge(code, said)
    if kind in ("done", "refused", "usage") and (
        found[1].ru_maxrss * 1024 - before > RESIDENT or "out of memory" in said
    ):
        kind = "memory"
    return Outcome(kind, code, seconds, said[-2000:])


def judge(code: int, said: str, allowed: Sequence[int] = ()) -> str:
    """What an exit code and stderr come to; `allowed` codes beside 0, 1 and 2 are `done`."""
    if TRACEBACK in said:  # a library in Rust says where it panicked; a line of ours has to follow
        return "traceback"
    if "panicked at" in said and (code != 1 or not said.splitlines()[-1].startswith("hybrid: ")):
        return "traceback"
    if code in (0, *allowed):
        return "done"
    if code < 0:
        return "crash"
    if code == 2:
        return "usage"
    if code == 1:
        return "refused" if any(line.startswith("hybrid: ") for line in said.splitlines()) else "silent"
    return "exit"
