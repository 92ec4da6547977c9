"""What is known of predictors without their weights: families, shapes, formats, quality, what else was tried. No torch.

Placement and reports need no more. The predictors that compute, in `profiler.predictor`, are outlines with weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from profiler.artifacts import UserError
from profiler.formats import check_matrix, vector_bytes
from profiler.tensor_file import TensorOutline

Family = Literal["perceptron", "factors", "gates", "none"]
Reads = Literal["ffn_input", "residual", "previous_ffn_input"]
FAMILIES: tuple[Family, ...] = get_args(Family)
READS: tuple[Reads, ...] = get_args(Reads)
FP32 = 4  # bytes
LARGEST = 1 << 60  # bytes
NOTHING, EVERYTHING = float("inf"), float("-inf")  # thresholds that name no neuron, and all of them


class AnyMatrix(Protocol):
    """A matrix of weights in a format, or the outline of one."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def columns(self) -> int:
        """Weights of a row."""
        ...

    @property
    def weight_format(self) -> str:
        """One of `profiler.formats.MATRIX_FORMATS`."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        ...


class AnyVector(Protocol):
    """A tensor of one axis, or the outline of one."""

    @property
    def dtype(self) -> Any:
        """Type of its elements."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of its axes."""
        ...


M_co = TypeVar("M_co", bound=AnyMatrix, covariant=True)
V_co = TypeVar("V_co", bound=AnyVector, covariant=True)


@dataclass(frozen=True)
class MatrixOutline:
    """A matrix without its weights."""

    rows: int
    columns: int
    weight_format: str

    @staticmethod
    def of(tensor: TensorOutline, weight_format: str, columns: int) -> MatrixOutline:
        """Of a tensor that is said to hold `columns` weights a row in a format.

        Raises:
            ValueError: it does not.
            UserError: a quantised format, and columns that are not a whole number of blocks.
        """
        check_matrix(weight_format, columns, tensor.dtype, tensor.shape)
        return MatrixOutline(tensor.shape[0], columns, weight_format)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.rows * vector_bytes(self.weight_format, self.columns)


@dataclass(frozen=True, eq=False)
class PredictorOutline(Generic[M_co, V_co]):
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
    fc1: M_co | None
    fc2: M_co | None
    threshold: float
    bias: V_co | None = None
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
        if self.bias is not None and (
            tuple(self.bias.shape) != (self.neurons,) or not str(self.bias.dtype).endswith("float32")
        ):
            raise UserError("a predictor's bias is float32, one number for each neuron")
        if self.threshold != self.threshold:
            raise UserError("a predictor's threshold is not a number")

    @property
    def matrices(self) -> tuple[M_co, ...]:
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
        return sum(matrix.nbytes for matrix in self.matrices) + (0 if self.bias is None else FP32 * self.bias.shape[0])


P_co = TypeVar("P_co", bound=PredictorOutline[AnyMatrix, AnyVector], covariant=True)


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
class PredictorSetOutline(Generic[P_co]):
    """The predictors of all layers of the model `source_digest`, and the quality of each.

    trials: per layer, what was tried before one was chosen; empty where nothing was.
    """

    source_digest: str
    layers: tuple[P_co, ...]
    quality: tuple[PredictorQuality, ...]
    trials: tuple[tuple[Trial, ...], ...] = ()

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


# Those of a model, with weights or without.
AnyPredictors = PredictorSetOutline[PredictorOutline[AnyMatrix, AnyVector]]


def _is_number(value: object, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= high
