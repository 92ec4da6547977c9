"""Published predictor files: `model_{layer}.pt`, and the counts `activation_{layer}.pt`, as PowerInfer's models have.

A folder of them is another project's format: layers are sorted by number (as strings, 10 would come before 2), and a
folder that does not hold every layer of the model exactly once is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hybrid.checkpoint.tensors import FLOATS, SourceTensor
from hybrid.checkpoint.torch_file import open_torch_file, open_torch_tensor
from profiler.artifacts import UserError
from profiler.profile import Counts

RESAVE = "save it anew with torch.save, plain tensors only"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST = 10**15  # no text has more tokens
NAMED = 3  # files that a message names


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a folder, by layer. counts: none, or one for each layer."""

    predictors: tuple[Path, ...]
    counts: tuple[Path, ...]


def find_published(folder: Path, layers: int) -> PublishedFiles:
    """The files of a model with so many layers, sorted by the number in their name.

    Raises:
        UserError: no folder, or one in which a layer is missing, is there twice, or is none of the model's.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not any(re.fullmatch(r"model_[0-9]+\.pt", name) for name in names):
        raise UserError(f"{folder} holds no published predictors: one model_{{layer}}.pt is expected for each layer")
    predictors = _by_layer(folder, names, "model", layers)
    has_counts = any(re.fullmatch(r"activation_[0-9]+\.pt", name) for name in names)
    return PublishedFiles(predictors, _by_layer(folder, names, "activation", layers) if has_counts else ())


def open_predictor(path: Path, hidden: int, neurons: int) -> tuple[SourceTensor, SourceTensor]:
    """`fc1.weight [rank, hidden]` and `fc2.weight [neurons, rank]` of a layer's file, mapped.

    Raises:
        UserError: it holds code, or anything but these two as floats of these shapes.
    """
    tensors = {tensor.name: tensor for tensor in open_torch_file(path, RESAVE)}
    if set(tensors) != {"fc1.weight", "fc2.weight"}:
        found = ", ".join(sorted(tensors)[:NAMED]) or "nothing"
        raise UserError(f"{path} holds {found:.200}; a published predictor is fc1.weight and fc2.weight")
    fc1, fc2 = tensors["fc1.weight"], tensors["fc2.weight"]
    for tensor in (fc1, fc2):
        if tensor.code not in FLOATS:
            raise UserError(f"{path}: {tensor.name} is stored as {tensor.code}, and floats are expected")
    rank = fc1.shape[0] if fc1.shape else 0
    if not rank or fc1.shape != (rank, hidden) or fc2.shape != (neurons, rank):
        raise UserError(
            f"{path} is not a predictor of this model: fc1.weight is {list(fc1.shape)} and fc2.weight "
            f"{list(fc2.shape)}, and [rank, {hidden}] and [{neurons}, rank] are expected"
        )
    return fc1, fc2


def read_counts(path: Path, neurons: int) -> Counts:
    """int64 `[neurons]`: how often each neuron was active.

    Raises:
        UserError: the file holds code, or anything but so many whole numbers from 0 on.
    """
    values = open_torch_tensor(path, RESAVE)
    if values.dtype not in INTEGERS or values.shape != (neurons,):
        found = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        raise UserError(f"{path} is not of this model: it holds {found}, and whole numbers [{neurons}] are expected")
    counts = np.array(values.tolist(), dtype=np.int64)
    if counts.min() < 0 or counts.max() > MOST:
        raise UserError(f"{path} is damaged: it holds counts from {counts.min()} to {counts.max()}")
    return counts


def _by_layer(folder: Path, names: list[str], kind: str, layers: int) -> tuple[Path, ...]:
    """The files `{kind}_{layer}.pt` in the order of the layers."""
    found: dict[int, str] = {}
    for name in names:
        match = re.fullmatch(rf"{kind}_([0-9]+)\.pt", name)
        if not match:
            continue
        layer = int(match[1])
        if layer in found:
            raise UserError(f"{found[layer]} and {name} in {folder} are both of layer {layer}: remove one")
        found[layer] = name
    missing = [f"{kind}_{layer}.pt" for layer in range(layers) if layer not in found]
    foreign = [found[layer] for layer in sorted(found) if layer >= layers]
    if missing or foreign:
        problems = [f"{_some(missing)} missing"] if missing else []
        problems += [f"{_some(foreign)} too many"] if foreign else []
        raise UserError(f"{folder} is not for a model of {layers} layers: {'; '.join(problems)}")
    return tuple(folder / found[layer] for layer in range(layers))


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
