"""Predictors of a file, read and held against the model that they are to speak for."""

from __future__ import annotations

from pathlib import Path

from hybrid.stages.finding import predictors_mend, require_fit
from hybrid.store.files import ModelFiles
from profiler.predictor import PredictorSet
from profiler.predictor_file import read_predictors


def read_model_predictors(files: ModelFiles, path: Path) -> PredictorSet:
    """The predictors in a file.

    Raises:
        UserError: there is no such file, it is damaged, or its predictors are of another model.
    """
    predictors = read_predictors(path, predictors_mend(files))
    require_fit(files, path, predictors)
    return predictors


def find_predictors(files: ModelFiles, profile: str) -> PredictorSet | None:
    """The predictors of a profile, or None where the model has none; refused where they are of another model."""
    path = files.predictors_path(profile)
    return read_model_predictors(files, path) if path.exists() else None
