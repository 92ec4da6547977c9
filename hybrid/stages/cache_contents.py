"""What the cache folder holds, and how it is cleared: only what is known to be hybrid's, and can be made anew."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.cache import cache_directory
from profiler.artifacts import UserError, directory_lock, explain_os_errors

CLEARED = ".cleared-"  # what is being removed is called so first


@dataclass(frozen=True)
class Kind:
    """What belongs together. pattern: of its paths below the cache folder. by_itself: made anew when it is needed, else
    by the command in `made_by`.
    """

    name: str
    pattern: str
    made_by: str
    by_itself: bool


# Where a folder of the user's is named as the cache by mistake, these must not match what lies in it.
HEX = "[0-9a-f]"
KINDS = (
    Kind("demo", f"demo-{HEX * 12}", "hybrid run demo", True),
    Kind("demo", f"demo-{HEX * 12}.partial-build", "hybrid run demo", True),
    Kind("plans", f"plans/{HEX * 16}", "hybrid run DIR", True),
    Kind("hardware", f"hardware/*-{HEX * 8}.json", "hybrid hardware", False),
    Kind("hardware", f"hardware/*-{HEX * 8}-cpu.json", "hybrid hardware --second-device cpu", False),
    Kind("hardware", f"hardware/*-{HEX * 8}-cuda.json", "hybrid hardware --second-device cuda", False),
    Kind("leftover", f"{CLEARED}*", "nothing", True),
)


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache. path: below the folder. bytes: on the disk. modified: seconds since 1970. made_by: the
    command that makes it anew; by_itself: whether that happens whenever it is needed.
    """

    path: str
    kind: str
    bytes: int
    modified: float
    made_by: str
    by_itself: bool


@dataclass(frozen=True)
class CacheReport:
    """What is in the cache. other_bytes: of files that are not known here, which are left alone."""

    directory: Path
    entries: tuple[CacheEntry, ...]
    bytes: int
    other_bytes: int


@dataclass(frozen=True)
class Kept:
    """An entry that was to be removed and is still there, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ClearReport:
    """What was removed from the cache. bytes: that it took; a process that uses it keeps them until it ends."""

    directory: Path
    removed: tuple[CacheEntry, ...]
    bytes: int
    kept: tuple[Kept, ...]


def cache_contents() -> CacheReport:
    """What is in the cache folder, by kind and age.

    Raises:
        UserError: the folder cannot be read.
    """
    folder = cache_directory()
    with explain_os_errors("read the cache", folder):
        known = tuple(_entries(folder))
        total = _size(folder) if folder.is_dir() else 0
    size = sum(entry.bytes for entry in known)
    return CacheReport(folder, known, size, max(0, total - size))


def clear_cache(names: Sequence[str] = (), everything: bool = False) -> ClearReport:
    """Remove entries, each at once: a process that has one open keeps using it, others make it anew.

    Args:
        names: kinds, or paths of entries; none are all that come back by themselves.
        everything: those that take a command too.

    Raises:
        UserError: nothing has one of the names.
    """
    report = cache_contents()
    if unknown := [n for n in names if n not in {word for e in report.entries for word in (e.path, e.kind)} | _kinds()]:
        raise UserError(f"the cache has no {unknown[0]}; see what it has with: hybrid cache list")
    chosen = [
        entry
        for entry in report.entries
        if ({entry.path, entry.kind} & set(names) if names else everything or entry.by_itself)
    ]
    removed, kept = [], []
    for entry in chosen:
        try:
            _remove(report.directory / entry.path)
            removed.append(entry)
        except UserError as error:
            kept.append(Kept(entry.path, str(error)))
    return ClearReport(report.directory, tuple(removed), sum(entry.bytes for entry in removed), tuple(kept))


def _kinds() -> set[str]:
    return {kind.name for kind in KINDS}


def _entries(folder: Path) -> Iterator[CacheEntry]:
    for kind in KINDS:
        for path in sorted(folder.glob(kind.pattern)):
            with contextlib.suppress(FileNotFoundError):  # another process cleared it meanwhile
                where = path.relative_to(folder).as_posix()
                yield CacheEntry(
                    where, kind.name, _size(path), path.lstat().st_mtime, kind.made_by, by_itself=kind.by_itself
                )


def _size(path: Path) -> int:
    """Bytes on the disk of a file, or of all files in a folder; links are not followed."""
    files = [] if path.is_dir() and not path.is_symlink() else [path]
    for folder, _, names in os.walk(path):
        files += [Path(folder, name) for name in names]
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size += file.lstat().st_blocks * 512
    return size


def _remove(path: Path) -> None:
    """Remove a file or a folder; nobody sees one with a part of its files gone.

    Raises:
        UserError: another process writes it, or it may not be removed.
    """
    with explain_os_errors("clear the cache", path.parent):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
    with directory_lock(path, "clear the cache"), explain_os_errors("clear the cache", path.parent):
        aside = path if path.name.startswith(CLEARED) else path.with_name(f"{CLEARED}{os.getpid()}-{path.name}")
        path.replace(aside)
        shutil.rmtree(aside)
