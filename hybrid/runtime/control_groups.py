"""The control groups that a process belongs to, version 2 or 1, and their files, which may be missing.

Described in the kernel's documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst; `/proc/self/mountinfo`
in proc(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that limit what a process takes, from its own up to the topmost that is mounted.

    Args:
        root: where `proc` and `sys` are.
        controller: what is limited, as version 1 names it: `cpu`, `memory`. Version 2 has one tree for all.
    """
    paths = {}
    for line in read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif controller in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for line in read(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        top, mounted_at = (unescape(word) for word in mount.split(" ")[3:5])
        folder = root / mounted_at.lstrip("/")
        # A container may see its own group as the top of the mount, or be named by a path from outside of it.
        inside = paths[kind].relative_to(top) if paths[kind].is_relative_to(top) else PurePosixPath()
        yield folder
        if ".." not in inside.parts:
            yield from (folder / part for part in (inside, *inside.parents) if part.parts)


def unescape(word: str) -> str:
    """A path of mountinfo, where blanks and backslashes are octal escapes."""
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        word = word.replace(escape, character)
    return word


def read(path: Path) -> str:
    """A small file's text without blanks around it; empty where it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
