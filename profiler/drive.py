"""Times a drive: random reads of a scratch file, by block size and by how many are under way at once.

Threads call preadv with buffers aligned to pages; each block is read at most once a round, so that no figure comes from
memory. The interpreter hands out about half a million reads per second, which bounds what is seen at 4 KiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from profiler.artifacts import UserError, explain_os_errors, format_size, free_bytes
from profiler.speeds import FlashSpeed
from profiler.timing import Clock, spread

BLOCKS = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
DEPTHS = (1, 4, 16, 32)
SCRATCH, LEAST_SCRATCH = 512 << 20, 64 << 20  # bytes; drives have caches of their own, which it should exceed
WRITTEN_AT_ONCE = 8 << 20
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
MEND = "name a folder on the drive with --directory, or leave the drive out with --no-flash"


@dataclass(frozen=True)
class DriveReport:
    """speeds: medians over rounds. spread: the widest of them, as in `timing.Timing`. direct: reads went past the page
    cache; else it was dropped before every round. file_system: its kind. size: bytes of the scratch file.
    """

    speeds: tuple[FlashSpeed, ...]
    spread: float
    direct: bool
    file_system: str
    size: int


def measure_drive(
    folder: Path,
    seconds: float,
    size: int = SCRATCH,
    rounds: int = 3,
    blocks: Sequence[int] = BLOCKS,
    depths: Sequence[int] = DEPTHS,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> DriveReport:
    """Time the drive that a folder lies on for about `seconds`, and what writing a scratch file takes before.

    size: bytes of that file, fewer where the disk has less than twice as many left. It has no name, so that nothing is
    left of it however this ends.

    Raises:
        UserError: the folder is missing, cannot be written, lies in memory, or its disk has no room.
    """
    kind = require_drive(folder)
    size = min(size, free_bytes(folder) // 2 >> 20 << 20)
    points = [(block, depth) for block in blocks for depth in depths]
    found: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    generator = np.random.default_rng(0)
    with scratch_file(folder, size) as descriptor:
        direct = past_the_cache(descriptor)
        for turn in range(rounds):
            for number, (block, depth) in enumerate(points):
                if not direct:
                    drop_from_cache(descriptor)
                offsets = generator.permutation(size // block) * block
                read, took = read_blocks(descriptor, offsets, block, depth, seconds / rounds / len(points))
                found[block, depth].append(read / took)
                tell(turn * len(points) + number + 1, rounds * len(points))
    speeds = tuple(FlashSpeed(*point, statistics.median(rates)) for point, rates in found.items())
    return DriveReport(speeds, max(spread(rates) for rates in found.values()), direct, kind, size)


def require_drive(folder: Path) -> str:
    """The kind of file system that a folder lies on, once it is one with room for a scratch file.

    Raises:
        UserError: it is missing, in memory, or full.
    """
    if not folder.is_dir():
        raise UserError(f"cannot measure the drive: {folder} is not a folder; {MEND}")
    kind = file_system(folder)
    if kind in IN_MEMORY:
        raise UserError(f"cannot measure the drive: {folder} lies in memory ({kind}); {MEND}")
    free = free_bytes(folder)
    if free < 2 * LEAST_SCRATCH:
        raise UserError(
            f"cannot measure the drive: {format_size(free)} are free at {folder}, and a scratch file needs twice "
            f"{format_size(LEAST_SCRATCH)}; {MEND}"
        )
    return kind


def file_system(folder: Path) -> str:
    """The kind of file system mounted at a folder or nearest above it, as the system names it."""
    kinds = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    folder = folder.resolve()
    return next((kinds[str(path)] for path in (folder, *folder.parents) if str(path) in kinds), "unknown")


@contextlib.contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[int]:
    """Descriptor of a file without a name, of `size` random bytes that have reached the drive.

    Raises:
        UserError: it cannot be written, or what is done with it in the block fails.
    """
    with explain_os_errors("measure the drive", folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        data = np.random.default_rng(0).bytes(min(WRITTEN_AT_ONCE, size))  # what compresses would be read too fast
        for at in range(0, size, len(data)):
            os.pwrite(file.fileno(), data[: size - at], at)
        os.fsync(file.fileno())
        yield file.fileno()


def past_the_cache(descriptor: int) -> bool:
    """Have reads of a file go past the page cache; False where the file system does not allow it."""
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
        else:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(descriptor, [mmap.mmap(-1, mmap.PAGESIZE)], 0)  # some refuse only now
    except OSError:
        if sys.platform != "darwin":
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
        return False
    return True


def drop_from_cache(descriptor: int) -> None:
    """Have a file's pages leave the page cache, and reads of it bring in no more than they ask for."""
    if sys.platform != "darwin":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read_blocks(
    descriptor: int,
    offsets: npt.NDArray[np.int64],
    block: int,
    depth: int,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> tuple[int, float]:
    """Read blocks with `depth` threads until they are through or time is over: the bytes read and the seconds it took.

    Each thread reads at least one block.

    Raises:
        OSError: what a read failed with, or that a block ended early.
    """
    go, ends = threading.Event(), [float("inf")]
    counts, failures = [0] * depth, list[OSError]()

    def work(number: int, places: list[int], buffer: mmap.mmap) -> None:
        go.wait()
        try:
            for place in places:
                if os.preadv(descriptor, [buffer], place) != block:
                    raise OSError(f"the file ended within a block of {block} bytes at {place}")
                counts[number] += 1
                if clock() >= ends[0]:
                    return
        except OSError as error:
            failures.append(error)

    with contextlib.ExitStack() as held:
        threads = []
        for number in range(depth):
            buffer = held.enter_context(mmap.mmap(-1, block))  # aligned to a page, as direct reads ask for
            arguments = (number, offsets[number::depth].tolist(), buffer)
            threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        try:
            for thread in threads:
                thread.start()
            began = clock()
            ends[0] = began + seconds
            go.set()
            for thread in threads:
                thread.join()
            took = clock() - began
        finally:  # also when this is interrupted: no thread outlives the descriptor and the buffers
            ends[0] = float("-inf")
            go.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if failures:
        raise failures[0]
    return sum(counts) * block, took
