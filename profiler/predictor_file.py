"""The file of predictors: safetensors, written atomically, mapped when read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from profiler.artifacts import write_atomic
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_header import KIND, MEND, OLDER_VERSIONS, PREDICTOR_VERSION, Outline, outlines_of
from profiler.predictor_outline import MatrixOutline
from profiler.tensor_file import TensorFile, metadata_of, open_tensors


def write_predictors(path: Path, predictors: PredictorSet) -> None:
    """Write predictors as safetensors, atomically.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    tensors = {"thresholds": torch.tensor(predictors.thresholds, dtype=torch.float64)}
    for layer, predictor in enumerate(predictors.layers):
        predictor.check_finite()
        parts = {"fc1": predictor.fc1, "fc2": predictor.fc2}
        tensors |= {f"{layer}.{name}": part.data.contiguous() for name, part in parts.items() if part is not None}
        if predictor.bias is not None:
            tensors[f"{layer}.bias"] = predictor.bias.contiguous()
    body = {
        "source_digest": predictors.source_digest,
        "layers": [_described(predictor) for predictor in predictors.layers],
        "quality": list(map(asdict, predictors.quality)),
        "trials": [[trial.to_json() for trial in tried] for tried in predictors.trials],
    }
    write_atomic(path, save(tensors, metadata_of(KIND, PREDICTOR_VERSION, body)))


def read_predictors(path: Path, mend: str = MEND) -> PredictorSet:
    """Open predictors: their matrices are mapped, private to this process, and read when they are used.

    So nothing is said here of the weights' values; see `Predictor.check_finite`.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    with open_tensors(path, KIND, PREDICTOR_VERSION, mend, OLDER_VERSIONS, framework="pt") as file:
        known = outlines_of(file)
        layers = tuple(_with_weights(file, index, outline) for index, outline in enumerate(known.layers))
        return PredictorSet(known.source_digest, layers, known.quality, known.trials, path)


def _with_weights(file: TensorFile, index: int, outline: Outline) -> Predictor:
    def matrix(name: str, part: MatrixOutline | None) -> Matrix | None:
        return None if part is None else Matrix(file.read(f"{index}.{name}"), part.weight_format, part.columns)

    return Predictor(
        outline.family,
        outline.hidden,
        outline.neurons,
        matrix("fc1", outline.fc1),
        matrix("fc2", outline.fc2),
        outline.threshold,
        None if outline.bias is None else file.read(f"{index}.bias"),
        outline.reads,
    )


def _described(predictor: Predictor) -> dict[str, Any]:
    columns = [[matrix.weight_format, matrix.columns] for matrix in predictor.matrices]
    shape = [predictor.neurons, predictor.hidden]
    return {"family": predictor.family, "reads": predictor.reads, "shape": shape, "matrices": columns}
