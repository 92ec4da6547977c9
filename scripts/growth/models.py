"""The models that are measured: one shape with other shares of silent neurons, kept in a folder, made when missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peers.models import Pair, is_whole, making_key
from synthetic.directory import write_directory
from synthetic.gguf_file import write_gguf
from synthetic.planted import planted_predictors
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights

from hybrid.store.directory import ModelDirectory
from placement.skewed import LARGEST
from profiler.artifacts import atomic_directory
from profiler.formats import is_quantised
from profiler.predictor_file import write_predictors

Tell = Callable[[str], None]
NEVER_SILENT = 1e-6  # stands for a sparsity of 0, which no threshold gives
# The denser a model, the more evenly its neurons fire. PowerInfer (Song et al., 2024, figure 5): 80 % of the
# activations are carried by 69 % of the neurons of SwiGLU-70B, 43 % of ReGLU-70B and 26 % of OPT-30B, so sparse:
KNOWN_SPARSITIES, KNOWN_HOT_SHARES = (0.47, 0.82, 0.97), (0.69, 0.43, 0.26)


class GrowthWeights(PlantedWeights):
    """Planted weights whose neurons may also fire always."""

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """See `PlantedWeights`."""
        if self.shape.sparsity <= 1 - LARGEST:
            return torch.full((self.shape.ffn,), 1 - self.shape.sparsity, dtype=torch.float64)
        return super().probabilities

    def union(self, tokens: int) -> float:
        """Share of the neurons that at least one of so many independent tokens makes fire."""
        return float((1 - (1 - self.probabilities) ** tokens).mean())


@dataclass(frozen=True)
class Models:
    """Where the models of a shape lie, by sparsity and weight format. The shape's own sparsity is not used."""

    cache: Path
    name: str
    shape: Shape
    tell: Tell

    def weights(self, sparsity: float, overshoot: float = 1.0) -> GrowthWeights:
        """What is planted at a sparsity: a share of neurons silent for a token, 0 included.

        Raises:
            UserError: no model has that sparsity, or no predictor names so many rows.
        """
        hot_share = float(np.interp(sparsity, KNOWN_SPARSITIES, KNOWN_HOT_SHARES))
        silent = NEVER_SILENT if sparsity == 0 else sparsity
        return GrowthWeights(replace(self.shape, sparsity=silent, hot_share=hot_share, overshoot=overshoot))

    def directory(self, sparsity: float, weight_format: str, overshoots: tuple[float, ...] = (1.0,)) -> Path:
        """The model directory, with predictors for each overshoot under the names of `predictors_name`."""
        weights = self.weights(sparsity)
        path = self._path(weights, sparsity, weight_format)
        if path.parent.exists() and not is_whole(path):
            shutil.rmtree(path.parent)
        if not path.parent.exists():
            self.tell(f"making {path.parent.name}")
            with atomic_directory(path.parent, "make a model to measure") as (partial, _):
                write_directory(partial / path.name, weights, weight_format, lambda stage, done, total: None)
        with ModelDirectory.open(path) as directory:
            for overshoot in overshoots:
                name = predictors_name(overshoot)
                if not directory.has_predictors(name):
                    planted = self.weights(sparsity, overshoot)
                    predictors = planted_predictors(planted, directory.source_digest, is_quantised(weight_format))
                    write_predictors(directory.predictors_path(name), predictors)
        return path

    def pair(self, sparsity: float, weight_format: str) -> Pair:
        """The model directory, and the same weights for llama.cpp."""
        directory = self.directory(sparsity, weight_format)
        gguf = directory.parent / "model.gguf"
        if not gguf.exists():
            self.tell(f"making {gguf.parent.name}/{gguf.name}")
            write_gguf(gguf, self.weights(sparsity), weight_format)
        return Pair(directory, gguf)

    def _path(self, weights: PlantedWeights, sparsity: float, weight_format: str) -> Path:
        """The folder, named by what decides its bytes; those of the same name by older code are removed."""
        self.cache.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}-{1000 * sparsity:03.0f}-{weight_format}"
        path = self.cache / f"{stem}.{making_key(weights.shape, Path(__file__))}"
        for old in self.cache.glob(f"{stem}.*"):
            if not old.name.startswith(path.name):
                self.tell(f"removing {old.name}, made by another version")
                shutil.rmtree(old)
        return path / "model"


def predictors_name(overshoot: float) -> str:
    """Name, in a directory, of the predictors that name so many times the rows that fire."""
    return "default" if overshoot == 1 else f"names-{100 * overshoot:.0f}-percent"
