"""The shipped model: packed and profiled into the user's cache when it is first asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hybrid.stages.pack import pack
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, explain_os_errors, sha256_file

DEMO = "demo"
CHECKPOINT = Path(__file__).resolve().parent.parent / "demo"
PROFILE_TEXT = CHECKPOINT / "profile.jsonl"
CALIBRATION_TEXT = CHECKPOINT / "calibrate.jsonl"
HELDOUT_TEXT = CHECKPOINT / "heldout.jsonl"
PROFILE_TOKENS = 100_000  # of the text: enough for predictors of this size, and done in a minute


def cache_directory() -> Path:
    """Where derived files are kept: HYBRID_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("HYBRID_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hybrid"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybrid"


def demo_directory(tell: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Path:
    """The demo's model directory, made now if it is not there; named by the checkpoint's digest, so never stale."""
    if not (CHECKPOINT / "model.safetensors").is_file():
        raise UserError(f"the demo model is missing from {CHECKPOINT}; install hybrid-inference anew")
    digest = sha256_file(CHECKPOINT / "model.safetensors")[:12]
    path = cache_directory() / f"demo-{digest}"
    with explain_os_errors("prepare the demo model", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        tell(f"packing the demo model into {path} (once)")
        pack(CHECKPOINT, path)
    with ModelDirectory.open(path) as directory:
        profiled = directory.profile_path("default").exists() and directory.predictors_path("default").exists()
    if not profiled:
        tell("profiling the demo model (once, under a minute)")
        profile(path, [PROFILE_TEXT], ProfileSettings(tokens=PROFILE_TOKENS))
    return path
