"""What a model is, as data: the one decoder is built from a `ModelSpec` and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from profiler.artifacts import UserError

Activation = Literal["relu", "relu2", "silu", "gelu", "gelu_tanh", "drelu"]
Norm = Literal["rms", "layer"]
Positions = Literal["rope", "learned"]

ACTIVATIONS = get_args(Activation)
FLAGS = (
    "gated",
    "attention_bias",
    "qkv_bias",
    "ffn_bias",
    "tied_embeddings",
    "qk_norm",
    "parallel",
    "shared_norm",
)
# Larger than any model there is; a config beyond them is damaged or hostile.
LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "n_layers": 1 << 10,
    "n_neurons": 1 << 20,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "max_positions": 1 << 24,
}
CUTOFF_LIMIT = 1e6  # of an activation's magnitude


@dataclass(frozen=True)
class Llama3Scaling:
    """Rotary frequency scaling of Llama 3.1 and later (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def __post_init__(self) -> None:
        numbers = (self.factor, self.low_freq_factor, self.high_freq_factor, self.original_positions)
        if not all(isinstance(n, (int, float)) and math.isfinite(n) and n > 0 for n in numbers):
            raise UserError(f"rope scaling needs positive numbers, not {numbers}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError("rope scaling: high_freq_factor should be above low_freq_factor")


@dataclass(frozen=True)
class ModelSpec:
    """One model. A family (Llama, Mistral, OPT, Falcon) is a set of values, never a class of its own.

    n_neurons is the width of one FFN; max_positions the trained context in tokens; position_offset what is added to a
    position before it indexes a learned table (OPT: 2); sliding_window the tokens that attention looks back, if any.
    attention_bias: q, k, v and o have biases; qkv_bias: q, k and v alone (Qwen2). rotary_dims: the first values of a
    head that positions rotate, None for all of them (Nemotron: half). qk_norm: each head of q and k is normalised by
    its root mean square before it is rotated (Qwen3). parallel: the FFN reads the state that attention reads, not the
    one after it (Falcon); shared_norm: and through the same norm. activation_cutoff: the magnitude up to which an
    activation counts as zero (FATReLU of ProSparse: x if x > t else 0).
    """

    family: str
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_neurons: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    activation: Activation
    gated: bool
    norm: Norm
    norm_eps: float
    positions: Positions
    rope_theta: float = 10000.0
    rope_scaling: Llama3Scaling | None = None
    position_offset: int = 0
    attention_bias: bool = False
    ffn_bias: bool = False
    tied_embeddings: bool = False
    sliding_window: int | None = None
    activation_cutoff: float = 0.0
    qkv_bias: bool = False
    rotary_dims: int | None = None
    qk_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise UserError(f"config: {name} is {value!r}; a whole number from 1 to {limit} is expected")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"config: activation {self.activation!r} is not known; known are {', '.join(ACTIVATIONS)}")
        for name, known in (("norm", Norm), ("positions", Positions)):
            if getattr(self, name) not in get_args(known):
                raise UserError(f"config: {name} {getattr(self, name)!r} is not one of {', '.join(get_args(known))}")
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"config: {name} is {getattr(self, name)!r}; true or false is expected")
        if isinstance(self.position_offset, bool) or self.position_offset not in range(17):
            raise UserError(f"config: a position offset of {self.position_offset!r} is out of range")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"config: {self.n_heads} heads cannot share {self.n_kv_heads} key-value heads evenly")
        if self.activation == "drelu" and not self.gated:
            raise UserError("config: drelu is an activation of gate and up projection, and the model has no gate")
        if self.shared_norm and not self.parallel:
            raise UserError("config: attention and feed-forward share a norm only where they are parallel")
        if self.attention_bias and self.qkv_bias:
            raise UserError("config: the biases of q, k and v are given twice")
        self._check_rotary()
        if not (math.isfinite(self.norm_eps) and 0 <= self.norm_eps < 1):
            raise UserError(f"config: norm epsilon {self.norm_eps!r} is out of range")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise UserError(f"config: rope theta {self.rope_theta!r} is out of range")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"config: a sliding window of {self.sliding_window} tokens sees nothing")
        cutoff = self.activation_cutoff
        if isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)) or not 0 <= cutoff < CUTOFF_LIMIT:
            raise UserError(f"config: an activation cutoff of {cutoff!r} is out of range")

    def _check_rotary(self) -> None:
        if self.positions != "rope":
            if self.rotary_dims is not None:
                raise UserError("config: only rotary positions rotate a part of each head")
            return
        size = self.rotary_size
        if isinstance(size, bool) or not isinstance(size, int) or size % 2 or not 2 <= size <= self.head_dim:
            raise UserError(
                f"config: rotary positions need an even head size, or an even part of it: {size!r} of {self.head_dim}"
            )

    @property
    def rotary_size(self) -> int:
        """Values of each head that rotary positions rotate."""
        return self.head_dim if self.rotary_dims is None else self.rotary_dims

    @property
    def biased_projections(self) -> tuple[str, ...]:
        """Those of attention's projections that have a bias."""
        if self.attention_bias:
            return ("q", "k", "v", "o")
        return ("q", "k", "v") if self.qkv_bias else ()

    @property
    def row_parts(self) -> tuple[str, ...]:
        """Vectors of one neuron's record, in order, each of `hidden_size` elements."""
        return ("gate", "up", "down") if self.gated else ("up", "down")

    @property
    def has_exact_zeros(self) -> bool:
        """Whether the activation is exactly zero for some inputs, so that exact mode can skip rows."""
        return self.activation in ("relu", "relu2", "drelu") or self.activation_cutoff > 0

    @property
    def q_size(self) -> int:
        """Outputs of the query projection."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Outputs of the key projection, and of the value projection."""
        return self.n_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """The spec as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(body: dict[str, Any]) -> ModelSpec:
        """The spec of `to_json`, validated.

        Raises:
            UserError: keys missing or unknown, or values out of range.
        """
        known = {f.name for f in fields(ModelSpec)}
        if not isinstance(body, dict) or not set(body) <= known:
            raise UserError("the model's spec has keys that this program does not know; pack the checkpoint anew")
        try:
            scaling = body.get("rope_scaling")
            return ModelSpec(**{**body, "rope_scaling": Llama3Scaling(**scaling) if scaling else None})
        except TypeError as error:
            raise UserError(f"the model's spec is damaged ({error}); pack the checkpoint anew") from error
