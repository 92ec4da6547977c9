"""A synthetic model as a model directory: packed from weights that no file ever held, profiled as they were planted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hybrid.stages.pack import pack_checkpoint
from hybrid.stages.profile_results import write
from hybrid.store.directory import ModelDirectory
from hybrid.store.layout import dense_layout
from profiler.artifacts import directory_lock
from profiler.formats import is_quantised
from synthetic.ahead import Ahead
from synthetic.checkpoint import unwritten_checkpoint
from synthetic.planted import planted_predictors, planted_profile
from synthetic.weights import PlantedWeights

Progress = Callable[[str, int, int], None]


def write_directory(out: Path, weights: PlantedWeights, weight_format: str, progress: Progress) -> None:
    """Pack the model in a format, add profile and predictors named `default`, and put the hottest rows first.

    Predictors are q8_0 beside quantised weights, else bf16. About one layer is in memory at a time, and the predictors.
    `progress(stage, done, total)` is told bytes and layers.
    """
    with tempfile.TemporaryDirectory() as folder, Ahead(weights, _as_packed(weights, weight_format)) as ahead:
        checkpoint = unwritten_checkpoint(Path(folder), weights, ahead.tensor)
        pack_checkpoint(checkpoint, out.resolve(), weight_format, lambda done, total: progress("packing", done, total))
    with directory_lock(out, "profile"), ModelDirectory.open(out) as directory:
        digest = directory.source_digest
        predictors = planted_predictors(weights, digest, quantised=is_quantised(weight_format))
        write(directory, planted_profile(weights, digest), predictors, "default", progress)


def _as_packed(weights: PlantedWeights, weight_format: str) -> list[str]:
    """The names of all tensors in the order in which they are packed: dense ones, then each layer's rows."""
    dense = [entry.name for entry in dense_layout(weights.spec, weight_format).entries if entry.name in weights.names]
    rows = [name for name in weights.names if name not in dense]
    parts = ("up.bias", "down.weight", "gate.weight", "up.weight")
    places = {part: place for place, part in enumerate(parts)}

    def place(name: str) -> tuple[int, int]:
        _, layer, part = name.split(".", 2)
        return int(layer), places[part]

    return [*dense, *sorted(rows, key=place)]
