"""Predictors: for every layer, which neurons a token will activate, told from a state that is known beforehand.

What a predictor is, for all families; `predictor_file` keeps them, `training` and `training_free` make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from profiler.artifacts import UserError
from profiler.formats import BLOCK
from profiler.matrix import SIXTEEN_BIT, Matrix

Family = Literal["perceptron", "factors", "gates", "none"]
Reads = Literal["ffn_input", "residual", "previous_ffn_input"]
FAMILIES: tuple[Family, ...] = get_args(Family)
READS: tuple[Reads, ...] = get_args(Reads)
QUANTISED = "q8_0"
LARGEST = 1 << 60  # bytes
NOTHING, EVERYTHING = float("inf"), float("-inf")  # thresholds that name no neuron, and all of them


@dataclass(frozen=True, eq=False)
class Predictor:
    """One layer's: names the neurons whose logit is above a threshold.

    hidden, neurons: elements of the state that it reads, and neurons that it speaks of.
    family: how logits come about. `perceptron`: `relu(x fc1ᵀ) fc2ᵀ`, trained (Deja Vu, Liu et al., 2023, section 4;
    PowerInfer, Song et al., 2024, section 5). `factors`: `(x fc1ᵀ) fc2ᵀ`, a product of low rank in the place of the
    gate matrix. `gates`: `x fc2ᵀ`, the gate matrix itself in few bits. `none`: all logits are zero, so that all neurons
    are named and the layer's own gates decide.
    fc1: `[rank, hidden]`, of the first two families. fc2: `[neurons, rank]`, or `[neurons, hidden]` of `gates`, by
    neuron id. bias: fp32 `[neurons]`, added to the logits, or None. threshold: a logit, may be infinite.
    reads: the state it is told by. `ffn_input`: the normalised one that the FFN itself reads; `residual`: the one
    before that norm (PowerInfer's published predictors); `previous_ffn_input`: what the FFN of the layer before reads,
    so that rows are named a layer ahead.
    """

    family: Family
    hidden: int
    neurons: int
    fc1: Matrix | None
    fc2: Matrix | None
    threshold: float
    bias: torch.Tensor | None = None
    reads: Reads = "ffn_input"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or self.reads not in READS:
            raise UserError(f"a predictor of the family {self.family!r} that reads {self.reads!r} is not known")
        if (self.fc1 is None) != (self.family in ("gates", "none")) or (self.fc2 is None) != (self.family == "none"):
            raise UserError(f"a predictor of the family {self.family!r} has other matrices")
        if any(not matrix.rows for matrix in self.matrices):
            raise UserError("a predictor's matrices are [rank, hidden] and [neurons, rank], and neither is empty")
        if self.fc1 is not None and self.fc2 is not None and self.fc1.rows != self.fc2.columns:
            raise UserError(f"a predictor's matrices have ranks {self.fc1.rows} and {self.fc2.columns}")
        if self.matrices and (self.matrices[0].columns, self.matrices[-1].rows) != (self.hidden, self.neurons):
            raise UserError(f"a predictor's matrices are not for {self.neurons} neurons of {self.hidden} elements")
        if self.bias is not None and (self.bias.shape != (self.neurons,) or self.bias.dtype != torch.float32):
            raise UserError("a predictor's bias is float32, one number for each neuron")
        if self.threshold != self.threshold:
            raise UserError("a predictor's threshold is not a number")

    @staticmethod
    def low_rank(fc1: Matrix, fc2: Matrix, threshold: float, **rest: Any) -> Predictor:
        """Of two matrices: the trained perceptron, or with `family="factors"` a product."""
        rest = {"family": "perceptron", **rest}
        return Predictor(hidden=fc1.columns, neurons=fc2.rows, fc1=fc1, fc2=fc2, threshold=threshold, **rest)

    @staticmethod
    def gates(matrix: Matrix, threshold: float, **rest: Any) -> Predictor:
        """The gate matrix `[neurons, hidden]` in few bits."""
        return Predictor("gates", matrix.columns, matrix.rows, None, matrix, threshold, **rest)

    @staticmethod
    def none(hidden: int, neurons: int, threshold: float = EVERYTHING) -> Predictor:
        """No predictor: every neuron is named, or with a threshold of `NOTHING` none is."""
        return Predictor("none", hidden, neurons, None, None, threshold)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those it has, in the order in which they are used."""
        return tuple(matrix for matrix in (self.fc1, self.fc2) if matrix is not None)

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """Of each matrix."""
        return tuple(matrix.weight_format for matrix in self.matrices)

    @property
    def rank(self) -> int:
        """Width of the bottleneck; 0 where there is none."""
        return 0 if self.fc1 is None else self.fc1.rows

    @property
    def nbytes(self) -> int:
        """Bytes of weights and bias: what a token reads of it."""
        return sum(matrix.nbytes for matrix in self.matrices) + (0 if self.bias is None else self.bias.nbytes)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """fp32 `[tokens, neurons]` of states `[tokens, hidden]`: weights widened, sums in fp32.

        Raises:
            ValueError: of the family `none`, which has no logits of its own.
        """
        if self.fc2 is None:
            raise ValueError("a predictor without weights has no logits")
        every, x = slice(None), x.float()
        if self.fc1 is not None:
            x = x @ self.fc1.widened(every).T
            x = x.relu() if self.family == "perceptron" else x
        y = x @ self.fc2.widened(every).T
        return y if self.bias is None else y + self.bias

    def named(self, x: torch.Tensor) -> torch.Tensor:
        """bool `[tokens, neurons]`: the neurons that each token's own state names."""
        if self.fc2 is None:
            return torch.full((len(x), self.neurons), self.threshold < 0, device=x.device)
        return self.logits(x) > self.threshold

    def quantised(self, weight_format: str = QUANTISED) -> Predictor:
        """The same predictor, its 16-bit matrices in a format of blocks; those that are not whole blocks stay.

        Raises:
            UserError: a weight is too large for the format.
        """

        def rounded(matrix: Matrix) -> Matrix:
            if matrix.weight_format not in SIXTEEN_BIT or matrix.columns % BLOCK:
                return matrix
            return Matrix.quantised(matrix.widened(slice(None)), weight_format)

        return self.moved(rounded, lambda bias: bias)

    def moved(self, move: Callable[[Matrix], Matrix], move_vector: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
        """The same predictor with each matrix, and its bias, replaced by what the functions make of it."""
        fc1, fc2 = (None if matrix is None else move(matrix) for matrix in (self.fc1, self.fc2))
        return replace(self, fc1=fc1, fc2=fc2, bias=None if self.bias is None else move_vector(self.bias))

    def check_finite(self) -> None:
        """Read all weights.

        Raises:
            UserError: one is NaN or infinite.
        """
        finite = all(matrix.is_finite() for matrix in self.matrices)
        if not finite or (self.bias is not None and not bool(torch.isfinite(self.bias).all())):
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


@dataclass(frozen=True)
class Trial:
    """A predictor that was tried for a layer: what it is, and what its best threshold gave on held-out tokens.

    mass_at_active: share of a token's activation mass that as many neurons carry as are active, the best by its
    logits. named_at_keep: share of the neurons that it has to name to keep the wanted share of mass. bytes_per_token:
    of the predictor, of the gates of named rows and of the rest of those that are active too.
    """

    family: Family
    rank: int
    weight_formats: tuple[str, ...]
    nbytes: int
    mass_at_active: float
    named_at_keep: float
    bytes_per_token: float
    chosen: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or not all(isinstance(name, str) for name in self.weight_formats):
            raise UserError(f"a predictor of the family {self.family!r:.40} was tried, which is not known")
        sizes = (self.rank, self.nbytes, self.bytes_per_token)
        shares = (self.mass_at_active, self.named_at_keep)
        if not all(_is_number(s, LARGEST) for s in sizes) or not all(_is_number(s, 1) for s in shares):
            raise UserError(f"a predictor that was tried has figures out of range: {(*sizes, *shares)!r:.200}")

    def to_json(self) -> dict[str, Any]:
        """The trial as a JSON object."""
        return {**asdict(self), "weight_formats": list(self.weight_formats)}

    @staticmethod
    def from_json(body: dict[str, Any]) -> Trial:
        """The trial of `to_json`."""
        return Trial(**{**body, "weight_formats": tuple(body["weight_formats"])})


@dataclass(frozen=True, eq=False)
class PredictorSet:
    """The predictors of all layers of the model `source_digest`, and the quality of each.

    trials: per layer, what was tried before one was chosen; empty where nothing was.
    path: the file whose mapped pages the matrices are views of; None where they lie in memory of their own.
    """

    source_digest: str
    layers: tuple[Predictor, ...]
    quality: tuple[PredictorQuality, ...]
    trials: tuple[tuple[Trial, ...], ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.quality):
            raise UserError("predictors come with one measured quality per layer")
        if self.trials and len(self.trials) != len(self.layers):
            raise UserError("what was tried is told for every layer or for none")

    @property
    def nbytes(self) -> int:
        """Bytes of the weights of all layers."""
        return sum(p.nbytes for p in self.layers)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of all layers."""
        return tuple(p.threshold for p in self.layers)

    def fits(self, layers: int, hidden: int, neurons: int) -> bool:
        """Whether they are for a model of these sizes. No layer stands before the first one that it could read from."""
        if self.layers[0].reads == "previous_ffn_input":
            return False
        return len(self.layers) == layers and all((p.hidden, p.neurons) == (hidden, neurons) for p in self.layers)

    def with_thresholds(self, thresholds: Iterable[float]) -> PredictorSet:
        """The same predictors at other thresholds. What was measured of them no longer holds, and is kept."""
        pairs = zip(self.layers, thresholds, strict=True)
        return replace(self, layers=tuple(replace(p, threshold=t) for p, t in pairs))

    def silenced(self) -> PredictorSet:
        """The same predictors naming nothing: what the model is without them must then be lost."""
        return self.with_thresholds([NOTHING] * len(self.layers))

    def quantised(self) -> PredictorSet:
        """The same predictors in q8_0; see `Predictor.quantised`."""
        return replace(self, layers=tuple(p.quantised() for p in self.layers), path=None)

    def mappings(self) -> list[tuple[int, int, str]]:
        """(address, length, path) of each matrix that lies in a mapped file."""
        if self.path is None:
            return []
        matrices = [matrix for p in self.layers for matrix in p.matrices]
        return [(m.data.data_ptr(), m.nbytes, str(self.path)) for m in matrices]


def _is_number(value: object, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= high
