"""Predictors of a file, read and held against the model that they are to speak for."""

from __future__ import annotations

from pathlib import Path

from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.predictor import PredictorSet
from profiler.predictor_file import read_predictors


def read_model_predictors(directory: ModelDirectory, path: Path) -> PredictorSet:
    """The predictors in a file.

    Raises:
        UserError: there is no such file, it is damaged, or its predictors are of another model.
    """
    mend = f"hybrid profile {directory.path} --text FILE"
    predictors = read_predictors(path, mend)
    if predictors.source_digest != directory.source_digest:
        raise UserError(f"{path} was made for another model; make predictors of this one with: {mend}")
    spec = directory.spec
    if not predictors.fits(spec.n_layers, spec.hidden_size, spec.n_neurons):
        raise UserError(f"{path} is damaged: its sizes are not the model's; make predictors anew with: {mend}")
    return predictors
