"""The file of predictors: safetensors, written atomically, mapped when read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from profiler.artifacts import UserError, check_version, metadata_version, write_atomic
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorQuality, PredictorSet, Trial

# Versions 1 and 2 are read too: all layers are perceptrons there; in 1 of 16 bits, in 2 of one stated format.
PREDICTOR_VERSION = 3


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
    metadata = {"kind": "predictors", "format_version": str(PREDICTOR_VERSION), "predictors": json.dumps(body)}
    write_atomic(path, save(tensors, metadata))


def read_predictors(path: Path, mend: str = "hybrid profile DIR --text FILE") -> PredictorSet:
    """Open predictors: their matrices are mapped, private to this process, and read when they are used.

    So nothing is said here of the weights' values; see `Predictor.check_finite`.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    if not path.is_file():
        raise UserError(f"there are no predictors at {path}; make them with: {mend}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            version = _check_kind(path, metadata, mend)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _from_parts(path, version, json.loads(metadata["predictors"]), tensors)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error


def _described(predictor: Predictor) -> dict[str, Any]:
    columns = [[matrix.weight_format, matrix.columns] for matrix in predictor.matrices]
    shape = [predictor.neurons, predictor.hidden]
    return {"family": predictor.family, "reads": predictor.reads, "shape": shape, "matrices": columns}


def _check_kind(path: Path, metadata: dict[str, str], mend: str) -> int:
    if metadata.get("kind") != "predictors":
        raise UserError(f"{path} holds no predictors of hybrid; make them with: {mend}")
    return check_version(path, metadata_version(metadata), PREDICTOR_VERSION, mend, oldest=1)


def _from_parts(path: Path, version: int, body: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PredictorSet:
    thresholds: Sequence[float] = tensors["thresholds"].double().flatten().tolist()
    described = body["layers"] if version >= 3 else [_older(version, body, tensors, i) for i in range(len(thresholds))]
    if len(described) != len(thresholds):
        raise ValueError("as many thresholds as layers are expected")

    def predictor(index: int) -> Predictor:
        layer = described[index]
        names = {0: (), 1: ("fc2",), 2: ("fc1", "fc2")}[len(layer["matrices"])]
        parts = {
            name: Matrix(tensors[f"{index}.{name}"], weight_format, columns)
            for name, (weight_format, columns) in zip(names, layer["matrices"], strict=True)
        }
        neurons, hidden = layer["shape"]
        return Predictor(
            layer["family"],
            hidden,
            neurons,
            parts.get("fc1"),
            parts.get("fc2"),
            thresholds[index],
            tensors.get(f"{index}.bias"),
            layer["reads"],
        )

    layers = tuple(predictor(i) for i in range(len(thresholds)))
    quality = tuple(PredictorQuality(**q) for q in body["quality"])
    trials = tuple(tuple(Trial.from_json(t) for t in tried) for tried in body.get("trials", ()))
    return PredictorSet(str(body["source_digest"]), layers, quality, trials, path)


def _older(version: int, body: dict[str, Any], tensors: dict[str, torch.Tensor], index: int) -> dict[str, Any]:
    """How a layer of versions 1 and 2 would be described now."""
    if body["reads"] != "ffn_input":
        raise UserError(f"these predictors read {body['reads']!r}, not the state that the FFN reads")
    fc1, fc2 = tensors[f"{index}.fc1"], tensors[f"{index}.fc2"]
    if version == 2:
        columns = [[body["weight_format"], body["hidden"]], [body["weight_format"], fc1.shape[0]]]
    else:
        columns = [[Matrix.of(matrix).weight_format, matrix.shape[1]] for matrix in (fc1, fc2)]
    shape = [fc2.shape[0], columns[0][1]]
    return {"family": "perceptron", "reads": "ffn_input", "shape": shape, "matrices": columns}
