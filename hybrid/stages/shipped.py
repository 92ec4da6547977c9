"""Where the shipped model is: its checkpoint and texts in the package, and the model directory made of it. No torch."""

from __future__ import annotations

from pathlib import Path

from hybrid.cache import cache_directory
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError, digest_json, sha256_file

CHECKPOINT = Path(__file__).resolve().parent.parent / "demo"
PROFILE_TEXT = CHECKPOINT / "profile.jsonl"
CALIBRATION_TEXT = CHECKPOINT / "calibrate.jsonl"
HELDOUT_TEXT = CHECKPOINT / "heldout.jsonl"
PROFILE = CHECKPOINT / "profiles" / "default.safetensors"
PREDICTORS = CHECKPOINT / "predictors" / "default.safetensors"


def demo_path() -> Path:
    """Where the demo's model directory is, or would be: named by what it is made from, so never stale.

    Raises:
        UserError: the package lacks what it is made from.
    """
    made_from = (CHECKPOINT / "model.safetensors", PROFILE, PREDICTORS)
    missing = [file for file in made_from if not file.is_file()]
    if missing:
        raise UserError(
            f"the demo model is missing from {CHECKPOINT} ({missing[0].name}); install hybrid-inference anew"
        )
    return cache_directory() / f"demo-{digest_json([sha256_file(file) for file in made_from])[:12]}"


def is_profiled(path: Path) -> bool:
    """Whether a model directory has a profile and predictors."""
    files = ModelFiles.open_files(path)
    return files.has_profile("default") and files.has_predictors("default")
