"""A synthetic model as an ordinary Hugging Face checkpoint: on disk, or as a source for `hybrid pack` that is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from hybrid.checkpoint.reader import Checkpoint
from hybrid.checkpoint.tensors import SourceTensor
from synthetic.ahead import Ahead
from synthetic.weights import PlantedWeights

DEMO = Path(__file__).resolve().parent.parent.parent / "hybrid" / "demo"


@dataclass(frozen=True)
class PlantedTensor(SourceTensor):
    """A tensor that is made when it is read, by `make`."""

    make: Callable[[], torch.Tensor]

    def blocks(self, rows: int) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        yield from torch.split(self.make(), rows)


def write_small_files(out: Path, weights: PlantedWeights) -> None:
    """config.json, and a tokenizer (the demo's: its text is what profiles are made of)."""
    (out / "config.json").write_text(json.dumps(weights.shape.config, indent=1))
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / file, out / file)


def unwritten_checkpoint(folder: Path, weights: PlantedWeights, make: Callable[[str], torch.Tensor]) -> Checkpoint:
    """A checkpoint whose small files are in `folder` and whose weights `make` makes, by name, as they are read."""
    write_small_files(folder, weights)
    theirs = source_names(weights)
    tensors: dict[str, SourceTensor] = {
        name: PlantedTensor(theirs[name], folder / "made", "BF16", shape, partial(make, name))
        for name, shape in weights.names.items()
    }
    return Checkpoint(folder, weights.spec, tensors)


def write_checkpoint(out: Path, weights: PlantedWeights) -> int:
    """A shard per layer, the index and the small files. Returns the number of weights."""
    out.mkdir(parents=True)
    theirs = source_names(weights)
    shards: dict[str, list[str]] = {}
    for name in weights.names:
        layer = name.split(".")[1] if name.startswith("layers.") else "outer"
        shards.setdefault(f"model-{layer}.safetensors", []).append(name)
    total = 0
    with Ahead(weights, [name for names in shards.values() for name in names]) as ahead:
        for file, names in shards.items():
            tensors = {theirs[name]: ahead.tensor(name) for name in names}
            save_file(tensors, out / file)
            total += sum(t.numel() for t in tensors.values())
    weight_map = {theirs[name]: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    write_small_files(out, weights)
    return total


def source_names(weights: PlantedWeights) -> Mapping[str, str]:
    """This project's name of each tensor -> the checkpoint's."""
    modules = weights.shape.checkpoint_family.modules.items()
    renamed = {
        ours.replace("{i}", str(layer)): theirs.replace("{i}", str(layer))
        for ours, theirs in modules
        for layer in range(weights.shape.layers)
    }
    return {name: ".".join([renamed[name.rpartition(".")[0]], name.rpartition(".")[2]]) for name in weights.names}
