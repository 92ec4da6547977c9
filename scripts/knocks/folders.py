"""Copies of folders that share their files' bytes, damage to what kind of file one is, and what was changed since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any


def linked(source: Path, target: Path) -> Path:
    """A copy of a folder whose files are links to the same bytes: every writer here replaces files by renaming."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def replaced(path: Path, data: bytes) -> None:
    """Other bytes under the same name; the linked original stays as it was."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def odd(path: Path, rng: Random) -> bool:
    """Now and then the file is no file: missing, empty, a folder, a dangling link, a pipe, unreadable."""
    if rng.random() > 0.03:
        return False
    path.unlink()
    kind = rng.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("nowhere")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        os.mkfifo(path)
    return True


def snapshot(folders: Sequence[Path]) -> dict[str, Any]:
    """What tells whether a file was changed, by its path."""
    found: dict[str, Any] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            seen = path.lstat()
            found[str(path)] = (
                None if path.is_dir() and not path.is_symlink() else (seen.st_ino, seen.st_size, seen.st_mtime_ns)
            )
    return found
