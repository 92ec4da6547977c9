"""The shipped model: packed into the user's cache, with its profile and predictors, when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hybrid.cache import cache_directory
from hybrid.stages.pack import pack
from hybrid.stages.profile_results import make_folders, write_counts
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError, digest_json, directory_lock, explain_os_errors, sha256_file, write_atomic
from profiler.profile import read_profile

DEMO = "demo"
CHECKPOINT = Path(__file__).resolve().parent.parent / "demo"
PROFILE_TEXT = CHECKPOINT / "profile.jsonl"
CALIBRATION_TEXT = CHECKPOINT / "calibrate.jsonl"
HELDOUT_TEXT = CHECKPOINT / "heldout.jsonl"
PROFILE = CHECKPOINT / "profiles" / "default.safetensors"
PREDICTORS = CHECKPOINT / "predictors" / "default.safetensors"


def demo_directory(tell: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Path:
    """The demo's model directory, made now if it is not there; named by what it is made from, so never stale."""
    made_from = (CHECKPOINT / "model.safetensors", PROFILE, PREDICTORS)
    missing = [file for file in made_from if not file.is_file()]
    if missing:
        raise UserError(
            f"the demo model is missing from {CHECKPOINT} ({missing[0].name}); install hybrid-inference anew"
        )
    digest = digest_json([sha256_file(file) for file in made_from])[:12]
    path = cache_directory() / f"demo-{digest}"
    with explain_os_errors("prepare the demo model", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        tell(f"packing the demo model into {path} (once)")
        pack(CHECKPOINT, path)
    files = ModelFiles.open_files(path)
    profiled = files.has_profile("default") and files.has_predictors("default")
    if not profiled:
        put_profile(path)
    return path


def put_profile(path: Path) -> None:
    """Give a packed demo the shipped profile and predictors, which `scripts/profile_demo.sh` made of it."""
    with directory_lock(path, "prepare the demo model"), ModelDirectory.open(path) as directory:
        make_folders(directory, "default")
        write_atomic(directory.predictors_path("default"), PREDICTORS.read_bytes())
        write_counts(directory, read_profile(PROFILE), "default")
