"""The shipped model: packed into the user's cache, with its profile and predictors, when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hybrid.stages.pack import pack
from hybrid.stages.profile_results import make_folders, write_counts
from hybrid.stages.shipped import CHECKPOINT, PREDICTORS, PROFILE, demo_path, is_profiled
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import directory_lock, explain_os_errors, write_atomic
from profiler.profile import read_profile


def demo_directory(tell: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Path:
    """The demo's model directory, made now if it is not there."""
    path = demo_path()
    with explain_os_errors("prepare the demo model", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        tell(f"packing the demo model into {path} (once)")
        pack(CHECKPOINT, path)
    if not is_profiled(path):
        put_profile(path)
    return path


def put_profile(path: Path) -> None:
    """Give a packed demo the shipped profile and predictors, which `scripts/profile_demo.sh` made of it."""
    with directory_lock(path, "prepare the demo model"), ModelDirectory.open(path) as directory:
        make_folders(directory, "default")
        write_atomic(directory.predictors_path("default"), PREDICTORS.read_bytes())
        write_counts(directory, read_profile(PROFILE), "default")
