"""What the file of predictors says of them in its header: all but the weights, and so without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiler.artifacts import UserError
from profiler.formats import sixteen_bit_format
from profiler.predictor_outline import (
    MatrixOutline,
    PredictorOutline,
    PredictorQuality,
    PredictorSetOutline,
    Trial,
)
from profiler.tensor_file import TensorFile, TensorOutline, open_tensors

KIND = "predictors"
# Versions 1 and 2 are read too: all layers are perceptrons there; in 1 of 16 bits, in 2 of one stated format.
PREDICTOR_VERSION = 3
OLDER_VERSIONS = (1, 2)
MEND = "hybrid profile DIR --text FILE"
MATRICES = {0: (), 1: ("fc2",), 2: ("fc1", "fc2")}  # by their number

Outline = PredictorOutline[MatrixOutline, TensorOutline]


def read_outlines(path: Path, mend: str = MEND) -> PredictorSetOutline[Outline]:
    """What a file says of its predictors; no weights are read.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    with open_tensors(path, KIND, PREDICTOR_VERSION, mend, OLDER_VERSIONS) as file:
        return outlines_of(file)


def outlines_of(file: TensorFile) -> PredictorSetOutline[Outline]:
    """The predictors of an open file, their shapes and formats those of its tensors.

    Raises:
        UserError, and what `open_tensors` takes for damage: its parts do not fit each other.
    """
    body = file.body
    (count,) = file.outline("thresholds").shape
    described = body["layers"] if file.version >= 3 else [_older(file, index) for index in range(count)]
    thresholds = file.numbers("thresholds", len(described))
    layers = tuple(_outline(file, index, described[index], thresholds[index]) for index in range(len(described)))
    quality = tuple(PredictorQuality(**q) for q in body["quality"])
    trials = tuple(tuple(Trial.from_json(t) for t in tried) for tried in body.get("trials", ()))
    return PredictorSetOutline(str(body["source_digest"]), layers, quality, trials)


def _outline(file: TensorFile, index: int, layer: dict[str, Any], threshold: float) -> Outline:
    parts = {
        name: MatrixOutline.of(file.outline(f"{index}.{name}"), weight_format, columns)
        for name, (weight_format, columns) in zip(MATRICES[len(layer["matrices"])], layer["matrices"], strict=True)
    }
    neurons, hidden = layer["shape"]
    bias = file.outline(f"{index}.bias") if f"{index}.bias" in file.names else None
    return Outline(
        layer["family"], hidden, neurons, parts.get("fc1"), parts.get("fc2"), threshold, bias, layer["reads"]
    )


def _older(file: TensorFile, index: int) -> dict[str, Any]:
    """How a layer of versions 1 and 2 would be described now."""
    body = file.body
    if body["reads"] != "ffn_input":
        raise UserError(f"these predictors read {body['reads']!r}, not the state that the FFN reads")
    fc1, fc2 = file.outline(f"{index}.fc1"), file.outline(f"{index}.fc2")
    if file.version == 2:
        columns = [[body["weight_format"], body["hidden"]], [body["weight_format"], fc1.shape[0]]]
    else:
        columns = [[sixteen_bit_format(part.dtype, part.shape), part.shape[1]] for part in (fc1, fc2)]
    shape = [fc2.shape[0], columns[0][1]]
    return {"family": "perceptron", "reads": "ffn_input", "shape": shape, "matrices": columns}
