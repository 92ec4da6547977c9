"""Predictors: for every layer, which neurons a token will activate, told from the state that its FFN reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from profiler.artifacts import UserError, check_version, write_atomic
from profiler.matrix import SIXTEEN_BIT, Matrix

PREDICTOR_VERSION = 2  # version 1, which is read too, states no weight format: its matrices are 16 bit
READS = "ffn_input"  # the normalised state, as the FFN itself reads it
QUANTISED = "q8_0"
NOTHING, EVERYTHING = float("inf"), float("-inf")  # thresholds that name no neuron, and all of them


@dataclass(frozen=True, eq=False)
class LowRankPredictor:
    """`relu(x fc1ᵀ) fc2ᵀ > threshold` (Deja Vu, Liu et al., 2023, section 4; PowerInfer, Song et al., 2024, section 5).

    fc1: `[rank, hidden]`; fc2: `[neurons, rank]`, by neuron id; both 16 bit of one type, or q8_0. threshold: a logit,
    may be infinite.
    """

    fc1: Matrix
    fc2: Matrix
    threshold: float

    def __post_init__(self) -> None:
        if not self.fc1.rows or not self.fc2.rows:
            raise UserError("a predictor has two matrices, [rank, hidden] and [neurons, rank]")
        if self.fc1.rows != self.fc2.columns:
            raise UserError(f"a predictor's matrices have ranks {self.fc1.rows} and {self.fc2.columns}")
        if self.fc2.weight_format != self.fc1.weight_format or self.weight_format not in (*SIXTEEN_BIT, QUANTISED):
            raise UserError(f"a predictor's matrices are both f16, both bf16 or both {QUANTISED}")
        if self.threshold != self.threshold:
            raise UserError("a predictor's threshold is not a number")

    @property
    def weight_format(self) -> str:
        """Format of both matrices."""
        return self.fc1.weight_format

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.fc1.rows

    @property
    def hidden(self) -> int:
        """Elements of the state that it reads."""
        return self.fc1.columns

    @property
    def neurons(self) -> int:
        """Neurons that it speaks of."""
        return self.fc2.rows

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.rank * (self.hidden + self.neurons)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.fc1.nbytes + self.fc2.nbytes

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, neurons]` of states `[tokens, hidden]`: weights widened, sums in fp32."""
        every = slice(None)
        return torch.relu(x.float() @ self.fc1.widened(every).T) @ self.fc2.widened(every).T

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, neurons]`: the neurons that each token's own state names."""
        return self.logits(x) > self.threshold

    def quantised(self) -> LowRankPredictor:
        """The same predictor in q8_0, half the bytes; itself where it is in that format.

        Raises:
            UserError: rank or hidden size is not divisible by 32, or a weight is too large for the format.
        """
        if self.weight_format == QUANTISED:
            return self
        fc1, fc2 = (Matrix.quantised(matrix.widened(slice(None)), QUANTISED) for matrix in (self.fc1, self.fc2))
        return replace(self, fc1=fc1, fc2=fc2)

    def check_finite(self) -> None:
        """Read all weights.

        Raises:
            UserError: one is NaN or infinite.
        """
        if not (self.fc1.is_finite() and self.fc2.is_finite()):
            raise UserError("a predictor holds values that are not numbers")


@dataclass(frozen=True)
class PredictorQuality:
    """What a predictor is worth, measured on `tokens` tokens of documents that it was not trained on.

    All are shares from 0 to 1. active, named: share of the neurons, averaged over tokens. recall: share of the active
    ones that were named. precision: share of the named ones that were active. mass_recall: share of a token's summed
    |activation| that the named ones carry, averaged over tokens. A share of nothing is 1: nothing was missed, nothing
    named in vain.
    """

    tokens: int
    active: float
    named: float
    recall: float
    precision: float
    mass_recall: float

    def __post_init__(self) -> None:
        shares = (self.active, self.named, self.recall, self.precision, self.mass_recall)
        if not all(isinstance(s, (int, float)) and 0 <= s <= 1 for s in shares):
            raise UserError(f"a predictor's quality is shares from 0 to 1, not {shares}")
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 0:
            raise UserError(f"a predictor's quality was measured on {self.tokens!r} tokens")


@dataclass(frozen=True, eq=False)
class PredictorSet:
    """The predictors of all layers of the model `source_digest`, and the quality of each.

    path: the file whose mapped pages the matrices are views of; None where they lie in memory of their own.
    """

    source_digest: str
    layers: tuple[LowRankPredictor, ...]
    quality: tuple[PredictorQuality, ...]
    path: Path | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.quality):
            raise UserError("predictors come with one measured quality per layer")
        if len({(p.hidden, p.neurons) for p in self.layers}) > 1:
            raise UserError("all predictors of a model are for layers of one size")
        if len({p.weight_format for p in self.layers}) > 1:
            raise UserError("all predictors of a model are in one weight format")

    @property
    def weight_format(self) -> str:
        """Format of all matrices."""
        return self.layers[0].weight_format

    @property
    def parameters(self) -> int:
        """Number of weights of all layers."""
        return sum(p.parameters for p in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights of all layers."""
        return sum(p.nbytes for p in self.layers)

    def silenced(self) -> PredictorSet:
        """The same predictors naming nothing: what the model is without them must then be lost."""
        return replace(self, layers=tuple(replace(p, threshold=NOTHING) for p in self.layers))

    def quantised(self) -> PredictorSet:
        """The same predictors in q8_0; themselves where they are in that format. See `LowRankPredictor.quantised`."""
        if self.weight_format == QUANTISED:
            return self
        return replace(self, layers=tuple(p.quantised() for p in self.layers), path=None)

    def mappings(self) -> list[tuple[int, int, str]]:
        """(address, length, path) of each matrix that lies in a mapped file."""
        if self.path is None:
            return []
        matrices = [matrix for p in self.layers for matrix in (p.fc1, p.fc2)]
        return [(m.data.data_ptr(), m.nbytes, str(self.path)) for m in matrices]


def write_predictors(path: Path, predictors: PredictorSet) -> None:
    """Write predictors as safetensors, atomically.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    tensors = {"thresholds": torch.tensor([p.threshold for p in predictors.layers], dtype=torch.float64)}
    for layer, predictor in enumerate(predictors.layers):
        predictor.check_finite()
        tensors |= {f"{layer}.fc1": predictor.fc1.data.contiguous(), f"{layer}.fc2": predictor.fc2.data.contiguous()}
    body = {
        "source_digest": predictors.source_digest,
        "reads": READS,
        "weight_format": predictors.weight_format,
        "hidden": predictors.layers[0].hidden,
        "quality": list(map(asdict, predictors.quality)),
    }
    metadata = {"kind": "predictors", "format_version": str(PREDICTOR_VERSION), "predictors": json.dumps(body)}
    write_atomic(path, save(tensors, metadata))


def read_predictors(path: Path, mend: str = "hybrid profile DIR --text FILE") -> PredictorSet:
    """Open predictors: their matrices are mapped, private to this process, and read when they are used.

    So nothing is said here of the weights' values; see `LowRankPredictor.check_finite`.

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


def _check_kind(path: Path, metadata: dict[str, str], mend: str) -> int:
    if metadata.get("kind") != "predictors":
        raise UserError(f"{path} holds no predictors of hybrid; make them with: {mend}")
    version = metadata.get("format_version", "")
    if version != "1":
        check_version(path, int(version) if version.isdigit() else None, PREDICTOR_VERSION, mend)
    return int(version)


def _from_parts(path: Path, version: int, body: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PredictorSet:
    if body["reads"] != READS:
        raise UserError(f"these predictors read {body['reads']!r}, not the state that the FFN reads")

    def predictor(index: int, threshold: float) -> LowRankPredictor:
        fc1, fc2 = tensors[f"{index}.fc1"], tensors[f"{index}.fc2"]
        if version == 1:
            return LowRankPredictor(Matrix.of(fc1), Matrix.of(fc2), threshold)
        first = Matrix(fc1, body["weight_format"], body["hidden"])
        return LowRankPredictor(first, Matrix(fc2, body["weight_format"], first.rows), threshold)

    thresholds: Sequence[float] = tensors["thresholds"].double().flatten().tolist()
    layers = tuple(predictor(i, t) for i, t in enumerate(thresholds))
    quality = tuple(PredictorQuality(**q) for q in body["quality"])
    return PredictorSet(str(body["source_digest"]), layers, quality, path)
