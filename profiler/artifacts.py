"""What every file of this project obeys: atomic writes, digests, byte sizes, locks and the error a user sees.

Standard library only, so that commands which need no tensor start fast.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
PARTIAL = ".partial-"
CHUNK = 1 << 20
T = TypeVar("T")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake or a state of the machine that the user can mend: the message says how. Shown without a traceback."""


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `8GiB`, `7.5 MiB`, `512`, `2G` (binary) or `2GB` (decimal).

    Raises:
        UserError: the text is no size, is negative or is over 2**60 bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise UserError(f"{text!r} is not a size; write one as 8GiB, 512MiB or 2GB")
    size = int(float(match[1]) * UNITS[match[2].upper()])
    if size > 1 << 60:
        raise UserError(f"{text!r} is more memory than any machine has")
    return size


def parse_count(text: str) -> int:
    """A number of tokens as people write it: `100k`, `2M`, `1.5m`, `5000`; k and M are thousands and millions.

    Raises:
        UserError: the text is no such number, or not from 1 to 10**15.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)\s*", text)
    count = round(float(match[1]) * COUNTS[match[2].upper()]) if match and len(text) < 40 else 0
    if not 1 <= count <= 10**15:
        raise UserError(f"{text!r} is not a number of tokens; write one as 5000, 100k or 2M")
    return count


def format_size(size: float) -> str:
    """Bytes as people read them, in binary units: `7.0 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file, read in chunks; `on_bytes` is told each chunk's size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """Hex sha256 of a JSON value, the same for equal values whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def explain_os_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the operating system says of writing at `path` into a `UserError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            free = format_size(free_bytes(path))
            raise UserError(f"cannot {action}: the disk of {path} is full ({free} free)") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"cannot {action}: {path} cannot be written; choose a folder of your own") from error
        raise UserError(f"cannot {action}: {error}") from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends well: written beside it, fsynced, renamed. Else it is removed."""
    beside = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}")
    with explain_os_errors(f"write {path.name}", path.parent):
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sync_directory(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, all or nothing."""
    with atomic_writer(path) as file:
        file.write(data)


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, kind: str, version: int, body: dict[str, Any]) -> None:
    """Write an artifact: an object that opens with its kind and format version, atomically."""
    text = json.dumps({"kind": kind, "format_version": version, **body}, indent=1, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def read_json(
    path: Path, kind: str, version: int, mend: str, limit: int = 64 << 20, older: Collection[int] = ()
) -> dict[str, Any]:
    """Read an artifact of `kind` written at `version`, or at one of the `older`; `mend` is what makes a new one.

    Raises:
        UserError: missing, over `limit` bytes, not JSON, of another kind, or of another version.
    """
    value = read_json_object(path, limit)
    if value.get("kind") != kind:
        raise UserError(f"{path} is not a {kind} file of hybrid; make one with: {mend}")
    check_version(path, value.get("format_version"), version, mend, older)
    return value


def read_json_object(path: Path, limit: int = 64 << 20) -> dict[str, Any]:
    """A JSON object from a file of others: bounded in size, every failure a `UserError`."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        if path.stat().st_size > limit:
            raise UserError(f"{path} is {format_size(path.stat().st_size)}; at most {format_size(limit)} is expected")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object")
    return value


def from_json(kind: type[T], value: Any, artifact: str) -> T:
    """A dataclass from the JSON object of its fields; its own checks run, nested objects are built before.

    Raises:
        UserError: fields are missing or not known: names the artifact and the class.
    """
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or set(value) != names:
        found = set(value) if isinstance(value, dict) else set()
        what = [f"{name} is missing" for name in sorted(names - found)]
        what += [f"{name!r:.40} is not known" for name in sorted(found - names)]
        raise UserError(f"{artifact}: {kind.__name__} is damaged ({', '.join(what[:3])})")
    return kind(**value)


def check_version(path: Path, found: object, known: int, mend: str, older: Collection[int] = ()) -> int:
    """An artifact's format version; refused unless it is `known`, or one of the `older` that are read too."""
    if not isinstance(found, int) or isinstance(found, bool):
        raise UserError(f"{path} has no format version; make it anew with: {mend}")
    if found > known:
        raise UserError(f"{path} has format version {found}, newer than this program reads ({known}): update hybrid")
    if found < known and found not in older:
        raise UserError(f"{path} has format version {found}, no longer read; make it anew with: {mend}")
    return found


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of `path`, or of its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free_space(path: Path, needed: int, purpose: str) -> None:
    """Fail before writing where the disk cannot hold what is to come."""
    free = free_bytes(path)
    if free < needed:
        raise UserError(
            f"{purpose} needs {format_size(needed)} on the disk of {path}, and {format_size(free)} are free: "
            f"{format_size(needed - free)} are missing"
        )


@contextlib.contextmanager
def directory_lock(path: Path, purpose: str) -> Iterator[None]:
    """The only writer of a directory, for the length of the block; readers need no lock. Freed by the kernel on kill.

    Raises:
        UserError: another process holds it, or moved or removed the directory before the lock was got.
    """
    with explain_os_errors(purpose, path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"cannot {purpose}: another process is writing {path}; wait until it ends") from error
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise UserError(f"cannot {purpose}: another process has just finished with {path}; look, then try again")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_directory(path: Path, purpose: str) -> Iterator[tuple[Path, bool]]:
    """A directory that appears at `path`, complete, when the block ends well; otherwise nothing of it is left.

    Yields the directory to fill, and whether remains of a killed run were removed from it. It has one name for all
    processes (`path.partial-build`) and is locked, so that only one builds `path`; a kill leaves it to the next.

    Raises:
        UserError: `path` exists and is not an empty directory, another process builds it, or it cannot be written.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}build")
    _require_absent(path, purpose)
    with explain_os_errors(purpose, path.parent):
        if partial.is_symlink():
            raise UserError(f"cannot {purpose}: {partial} is a link, which this program never makes; remove it")
        partial.mkdir(exist_ok=True)
    with directory_lock(partial, purpose):
        try:
            _require_absent(path, purpose)
            with explain_os_errors(purpose, path.parent):
                remains = list(partial.iterdir())
                for item in remains:
                    shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            yield partial, bool(remains)
            _require_absent(path, purpose)
            with explain_os_errors(purpose, path.parent):
                for folder in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
                    sync_directory(folder)
                partial.replace(path)
                sync_directory(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _require_absent(path: Path, purpose: str) -> None:
    with explain_os_errors(purpose, path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"cannot {purpose}: {path} exists and is not empty; remove it or choose another name")


def remove_stale_partials(directory: Path) -> list[Path]:
    """Remove what a killed writer left inside `directory`; the caller holds its lock. Returns what was removed."""
    stale = sorted(p for p in directory.rglob(f".*{PARTIAL}*") if p.is_file())
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


@contextlib.contextmanager
def only_writer(directory: Path, purpose: str) -> Iterator[None]:
    """`directory_lock`, and what killed writers left inside is removed.

    Raises:
        UserError: as there, or something of it cannot be removed.
    """
    with directory_lock(directory, purpose):
        with explain_os_errors(purpose, directory):
            remove_stale_partials(directory)
        yield
