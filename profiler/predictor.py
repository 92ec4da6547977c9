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

PREDICTOR_VERSION = 1
READS = "ffn_input"  # the normalised state, as the FFN itself reads it
SIXTEEN_BIT = (torch.float16, torch.bfloat16)
NOTHING, EVERYTHING = float("inf"), float("-inf")  # thresholds that name no neuron, and all of them


@dataclass(frozen=True, eq=False)
class LowRankPredictor:
    """`relu(x fc1ᵀ) fc2ᵀ > threshold` (Deja Vu, Liu et al., 2023, section 4; PowerInfer, Song et al., 2024, section 5).

    fc1: 16 bit `[rank, hidden]`; fc2: 16 bit `[neurons, rank]`, by neuron id; threshold: a logit, may be infinite.
    """

    fc1: torch.Tensor
    fc2: torch.Tensor
    threshold: float

    def __post_init__(self) -> None:
        if self.fc1.ndim != 2 or self.fc2.ndim != 2 or not self.fc1.numel() or not self.fc2.numel():
            raise UserError("a predictor has two matrices, [rank, hidden] and [neurons, rank]")
        if self.fc1.shape[0] != self.fc2.shape[1]:
            raise UserError(f"a predictor's matrices have ranks {self.fc1.shape[0]} and {self.fc2.shape[1]}")
        if self.fc1.dtype not in SIXTEEN_BIT or self.fc2.dtype != self.fc1.dtype:
            raise UserError("a predictor's matrices are both float16 or both bfloat16")
        if not (torch.isfinite(self.fc1).all() and torch.isfinite(self.fc2).all()) or self.threshold != self.threshold:
            raise UserError("a predictor holds values that are not numbers")

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.fc1.shape[0]

    @property
    def hidden(self) -> int:
        """Elements of the state that it reads."""
        return self.fc1.shape[1]

    @property
    def neurons(self) -> int:
        """Neurons that it speaks of."""
        return self.fc2.shape[0]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.fc1.numel() + self.fc2.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.fc1.nbytes + self.fc2.nbytes

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, neurons]` of states `[tokens, hidden]`: weights widened, sums in fp32."""
        return torch.relu(x.float() @ self.fc1.float().T) @ self.fc2.float().T

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, neurons]`: the neurons that each token's own state names."""
        return self.logits(x) > self.threshold


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
    """The predictors of all layers of the model `source_digest`, and the quality of each."""

    source_digest: str
    layers: tuple[LowRankPredictor, ...]
    quality: tuple[PredictorQuality, ...]

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.quality):
            raise UserError("predictors come with one measured quality per layer")
        if len({(p.hidden, p.neurons) for p in self.layers}) > 1:
            raise UserError("all predictors of a model are for layers of one size")

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


def write_predictors(path: Path, predictors: PredictorSet) -> None:
    """Write predictors as safetensors, atomically."""
    tensors = {"thresholds": torch.tensor([p.threshold for p in predictors.layers], dtype=torch.float64)}
    for layer, predictor in enumerate(predictors.layers):
        tensors[f"{layer}.fc1"], tensors[f"{layer}.fc2"] = predictor.fc1.contiguous(), predictor.fc2.contiguous()
    body = {"source_digest": predictors.source_digest, "reads": READS, "quality": list(map(asdict, predictors.quality))}
    metadata = {"kind": "predictors", "format_version": str(PREDICTOR_VERSION), "predictors": json.dumps(body)}
    write_atomic(path, save(tensors, metadata))


def read_predictors(path: Path, mend: str = "hybrid profile DIR --text FILE") -> PredictorSet:
    """Read predictors.

    Raises:
        UserError: missing, damaged, or of another format version; the message names the command `mend`.
    """
    if not path.is_file():
        raise UserError(f"there are no predictors at {path}; make them with: {mend}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_kind(path, metadata, mend)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _from_parts(json.loads(metadata["predictors"]), tensors)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error


def _check_kind(path: Path, metadata: dict[str, str], mend: str) -> None:
    if metadata.get("kind") != "predictors":
        raise UserError(f"{path} holds no predictors of hybrid; make them with: {mend}")
    version = metadata.get("format_version", "")
    check_version(path, int(version) if version.isdigit() else None, PREDICTOR_VERSION, mend)


def _from_parts(body: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PredictorSet:
    if body["reads"] != READS:
        raise UserError(f"these predictors read {body['reads']!r}, not the state that the FFN reads")
    thresholds: Sequence[float] = tensors["thresholds"].double().flatten().tolist()
    layers = tuple(LowRankPredictor(tensors[f"{i}.fc1"], tensors[f"{i}.fc2"], t) for i, t in enumerate(thresholds))
    return PredictorSet(str(body["source_digest"]), layers, tuple(PredictorQuality(**q) for q in body["quality"]))
