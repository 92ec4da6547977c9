"""Hindrances at points spread over a command: kills, a full disk, a folder that goes, files that shrink, signals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from knocks.bases import Bases
from knocks.campaign import Result
from knocks.jobs import EVALUATE, GENERATE, PACK, PATIENT, PLAN, PROFILED, Job, digest
from knocks.pool import BAD, in_child, judge, kill_session, run_case, wait
from knocks.tracer import can_trace, traced

KILLED = -signal.SIGKILL
SECONDS = 240.0  # machines stand still for minutes while others are measured


@dataclass(frozen=True)
class Reference:
    """A run of a job without hindrance. writes: system calls that write; 0 where they cannot be counted."""

    writes: int
    seconds: float
    digest: str
    bytes: int


@contextlib.contextmanager
def place(scratch: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for a job, and one for what its processes print."""
    folder = Path(tempfile.mkdtemp(prefix="point-", dir=scratch))
    try:
        folder.chmod(0o755)
        for name in ("work", "log", "log/after"):
            (folder / name).mkdir()
        yield folder / "work", folder / "log"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reference(job: Job, bases: Bases, scratch: Path) -> Reference:
    """Run a job, twice: timed, and with its writes counted."""
    with place(scratch) as (folder, log):
        job.begin(bases, folder)
        before = _bytes(folder)
        started = time.monotonic()
        outcome = run_case(job.work(bases, folder), log, PATIENT)
        assert outcome.kind == "done", outcome.said
        seconds, found, taken = time.monotonic() - started, digest(folder / job.model), _bytes(folder) - before
    if not can_trace():
        return Reference(0, seconds, found, taken)
    with place(scratch) as (folder, log):
        job.begin(bases, folder)
        counted = traced(job.work(bases, folder), log, SECONDS)
        assert counted.status == 0, (log / "stderr").read_text()
    return Reference(counted.writes, seconds, found, taken)


def spread(points: int, end: int) -> list[int]:
    """So many numbers from 1 to `end`, evenly."""
    return [1 + round(i * (end - 1) / max(1, points - 1)) for i in range(points)] if end else []


KILLS = ((PACK, 30, 10), (PROFILED, 34, 10), (PLAN, 12, 6))  # points by writes and by time


def kills(bases: Bases, scratch: Path, jobs: Sequence[tuple[Job, int, int]] = KILLS) -> Iterator[Result]:
    """kill -9 before the N-th write, and at times."""
    number = 0
    for job, by_writes, by_time in jobs:
        whole = reference(job, bases, scratch)
        moments: list[tuple[str, float]] = [("write", at) for at in spread(by_writes, whole.writes)]
        times = by_time if moments else by_time + by_writes
        moments += [("second", whole.seconds * (i + 0.5) / times) for i in range(times)]
        for how, at in moments:
            number += 1
            with place(scratch) as (folder, log):
                job.begin(bases, folder)
                if how == "write":
                    status = traced(job.work(bases, folder), log, SECONDS, int(at)).status
                else:
                    status = _signalled(job, bases, folder, log, signal.SIGKILL, at)
                problems = job.problems(bases, folder, log / "after", whole.digest)
                yield result(f"kill -9: {job.name}", number, status, log, problems, (0, KILLED), f"{how} {at:g}")


def full_disks(bases: Bases, scratch: Path) -> Iterator[Result]:
    """A disk, a tmpfs, with room for a part of what is written; every second one fills after it was looked at."""
    number = 0
    for job, points in ((PACK, 10), (PROFILED, 10), (PLAN, 4)):
        whole = reference(job, bases, scratch)
        for share in range(points):
            number += 1
            unseen = share % 2 == 0 or job is PLAN
            with place(scratch) as (folder, log), disk(folder, 64 << 20) as resize:
                job.begin(bases, folder)
                room = int(whole.bytes * (share + 0.3) / points) if whole.bytes > 0 else 4096 * share
                resize(_allocated(folder) + room)
                work = job.work(bases, folder)
                status = ended(in_child(_unseen(work) if unseen else work, log / "stdout", log / "stderr", None))
                resize(64 << 20)
                problems = job.problems(bases, folder, log / "after", whole.digest)
                yield result(f"full disk: {job.name}", number, status, log, problems, (), f"{room} bytes left")


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of its own on a folder, whose size can be changed. Needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)

    def resize(new: int) -> None:
        whole = -(-new // 4096) * 4096
        subprocess.run(["mount", "-o", f"remount,size={whole}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _unseen(work: Callable[[], None]) -> Callable[[], None]:
    """The work on a disk that seemed to have room when it was asked: others have taken it since."""

    def run() -> None:
        from profiler import artifacts

        artifacts.free_bytes = lambda path: 1 << 50
        work()

    return run


def vanishing(bases: Bases, scratch: Path) -> Iterator[Result]:
    """The folder that a command works in is removed before its N-th write."""
    number = 0
    for job, points in ((PACK, 10), (PROFILED, 14), (PLAN, 4), (EVALUATE, 4)):
        whole = reference(job, bases, scratch)
        for at in spread(points, whole.writes):
            number += 1
            with place(scratch) as (folder, log):
                job.begin(bases, folder)
                status = traced(job.work(bases, folder), log, SECONDS, at, lambda _, f=folder: _emptied(f)).status
                _emptied(folder)
                job.begin(bases, folder)
                problems = job.problems(bases, folder, log / "after")
                yield result(f"folder removed: {job.name}", number, status, log, problems, (), f"write {at}")


def shrinking(bases: Bases, scratch: Path) -> Iterator[Result]:
    """A file in use is cut: before the N-th write, or while a text is generated."""
    number = 0
    sources = (
        (GENERATE, "neurons/00.safetensors"),
        (GENERATE, "dense.safetensors"),
        (GENERATE, "predictors/default.safetensors"),
        (PROFILED, "dense.safetensors"),
        (PROFILED, "neurons/01.safetensors"),
        (EVALUATE, "neurons/01.safetensors"),
    )
    for job, name in sources:
        whole = reference(job, bases, scratch)
        for part in range(5):
            for length in (0, 5000):
                number += 1
                with place(scratch) as (folder, log):
                    job.begin(bases, folder)
                    child = in_child(job.work(bases, folder), log / "stdout", log / "stderr", None)
                    time.sleep(whole.seconds * (part + 0.5) / 5)
                    with contextlib.suppress(OSError):
                        os.truncate(folder / job.model / name, length)
                    status = ended(child)
                    yield result(
                        f"file cut: {job.name}", number, status, log, [], (), f"{name} to {length}, part {part}"
                    )


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1)


def signals(bases: Bases, scratch: Path, jobs: Sequence[Job] = (GENERATE, PACK, PROFILED, PLAN)) -> Iterator[Result]:
    """Signals while a text is generated, a model packed, profiled and planned."""
    number = 0
    for job in jobs:
        whole = reference(job, bases, scratch)
        for sent in SIGNALS:
            for part in range(4):
                number += 1
                with place(scratch) as (folder, log):
                    job.begin(bases, folder)
                    after = 0.004 * part if job is GENERATE else whole.seconds * (part + 0.5) / 4
                    status = _signalled(job, bases, folder, log, sent, after, job is GENERATE)
                    problems = job.problems(bases, folder, log / "after", whole.digest)
                    allowed = (0, 130) if sent == signal.SIGINT else (0, -sent)
                    yield result(f"signal: {job.name}", number, status, log, problems, allowed, sent.name)


def _signalled(
    job: Job, bases: Bases, folder: Path, log: Path, sent: int, after: float, writing: bool = False
) -> int | None:
    """Status of a job that is sent a signal some seconds after its start, or after it began to write its result."""
    child = in_child(job.work(bases, folder), log / "stdout", log / "stderr", None)
    until = time.monotonic() + SECONDS
    while writing and time.monotonic() < until and not ((log / "stdout").exists() and (log / "stdout").stat().st_size):
        time.sleep(0.0005)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, sent)
    return ended(child)


def ended(child: int, keep: bool = False) -> int | None:
    """The status of a child, None of one that hung; what it started is killed, unless it is kept."""
    found = wait(child, SECONDS)
    if not keep:
        kill_session(child)
    return None if found is None else found[0]


def result(
    target: str, number: int, status: int | None, log: Path, problems: list[str], allowed: Sequence[int], at: str
) -> Result:
    """What came of a command that wrote its stderr into `log`, and of looking at what it left."""
    said = (log / "stderr").read_text(errors="replace")
    code = None if status is None else os.waitstatus_to_exitcode(status)
    kind = "hang" if code is None else judge(code, said, allowed)
    if kind not in BAD and problems:
        kind = "damage"
    shown = f"{at}: {problems} {said[-1500:]}" if kind in BAD else ""
    return Result(0, number, target, kind, code, 0.0, 1, shown)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _allocated(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True)
