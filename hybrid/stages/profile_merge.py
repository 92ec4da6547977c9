"""`hybrid profile merge`: the counts of several runs of one model as one profile, and the rows in its order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hybrid.stages.model_predictors import read_model_predictors
from hybrid.stages.profile_results import ProfileReport, make_folders, make_report, write_counts
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, directory_lock, remove_stale_partials, sha256_file, write_atomic
from profiler.merge import merge_profiles
from profiler.profile import Profile, read_profile

Tell = Callable[[str, int, int], None]


def merge(path: Path, names: Sequence[str], name: str, progress: Tell | None = None) -> ProfileReport:
    """Write the sum of profiles as the profile `name`, with the predictors that they share, and reorder the rows.

    Args:
        path: the model directory.
        names: profiles of the directory by name, or profile files by path; their predictors lie in the directory, or in
            `predictors/` beside the folder of the file.
        name: of the result; may be one of them.
        progress: told `(stage, done, total)`.

    Raises:
        UserError: a profile is missing, of another model, or does not add up with the others; see `merge_profiles`.
    """
    with directory_lock(path, "merge profiles"):
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot merge profiles: {path} cannot be written; work on a copy of your own")
        removed = remove_stale_partials(path)
        with ModelDirectory.open(path) as directory:
            if len(set(names)) != len(names):
                raise UserError("a profile is named twice, and would count twice")
            files = {one: _profile_path(directory, one) for one in names}
            merged = merge_profiles({one: read_profile(file) for one, file in files.items()})
            _check_model(directory, merged)
            predictors, target = None, directory.predictors_path(name)
            if merged.has_predictors:
                source = _predictors_path(directory, files, merged)
                predictors = read_model_predictors(directory, source)
                make_folders(directory, name)
                if source != target:
                    write_atomic(target, source.read_bytes())
            else:
                make_folders(directory, name)
                target.unlink(missing_ok=True)  # those of an earlier profile of this name
            write_counts(directory, merged, name, progress)
        return make_report(path, name, merged, predictors, removed)


def _profile_path(directory: ModelDirectory, name: str) -> Path:
    path = Path(name)
    return path if path.is_file() else directory.profile_path(name)


def _predictors_path(directory: ModelDirectory, files: dict[str, Path], merged: Profile) -> Path:
    """The file of the predictors that the profiles were counted with: of the same name as one of them."""
    for path in files.values():
        for folder in (directory.path, path.parent.parent):
            found = folder / "predictors" / path.name
            if found.is_file() and sha256_file(found) == merged.predictors_digest:
                return found
    raise UserError(
        f"the predictors that the profiles were counted with are not in {directory.path / 'predictors'}; "
        "copy them there, under the name of one of the profiles"
    )


def _check_model(directory: ModelDirectory, merged: Profile) -> None:
    spec = directory.spec
    if merged.source_digest != directory.source_digest:
        raise UserError(f"the profiles are of another model than {directory.path}")
    if (merged.layers, merged.neurons) != (spec.n_layers, spec.n_neurons):
        raise UserError(f"the profiles count {merged.layers} layers of {merged.neurons} neurons, the model has others")
