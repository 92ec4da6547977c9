"""The thresholds of a model directory: found by name, and refused where they are of another model. Without torch."""

from __future__ import annotations

from dataclasses import replace

from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError
from profiler.thresholds import Loss, Thresholds, read_thresholds, write_thresholds


def find_thresholds(files: ModelFiles, name: str = "default") -> Thresholds | None:
    """The thresholds of that name, or None where the model has none; refused where they are of another model."""
    path, mend = files.thresholds_path(name), _mend(files, name)
    if not path.exists():
        return None
    thresholds = read_thresholds(path, mend)
    if thresholds.source_digest != files.source_digest:
        raise UserError(f"{path} was made for another model; make thresholds of this one with: {mend}")
    if len(thresholds.layers) != files.spec.n_layers:
        raise UserError(f"{path} is damaged: its layers are not the model's; make it anew with: {mend}")
    return thresholds


def require_thresholds(files: ModelFiles, name: str = "default") -> Thresholds:
    """As `find_thresholds`, and refused where the model has none."""
    thresholds = find_thresholds(files, name)
    if thresholds is None:
        raise UserError(f"{files.path} has no thresholds {name!r}; make them with: {_mend(files, name)}")
    return thresholds


def record_loss(files: ModelFiles, name: str, digest: str, loss: Loss) -> None:
    """Write what was measured of thresholds beside them, unless they have become others; see `Thresholds.digest`.

    The caller holds the directory's lock.
    """
    found = find_thresholds(files, name)
    if found is not None and found.digest == digest:
        write_thresholds(files.thresholds_path(name), replace(found, loss=loss))


def _mend(files: ModelFiles, name: str) -> str:
    which = "" if name == "default" else f" --name {name}"
    return f"hybrid calibrate {files.path} --text FILE --sparsity 0.5{which}"
