"""The shape of a synthetic model and the statistics planted in it; presets carry the sizes of well-known models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.checkpoint.config import read_config
from hybrid.checkpoint.families import Family
from hybrid.spec import ModelSpec
from profiler.artifacts import UserError

BLOCK = 32  # a predictor's rank is a multiple of it, so that it can be quantised
FAMILIES = ("llama", "mistral", "opt", "arcee")
UNGATED = {"opt": "relu", "arcee": "relu2"}  # and the activation that every model of the family has


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and what is planted.

    family: `llama` and `mistral` (gated, rotary), `opt` (ungated, biases, learned positions) or `arcee` (ungated,
    otherwise llama). sparsity: share of neurons silent for a token. hot_share: share of neurons that carry 80 % of the
    activations (0.26 of OPT-30B, PowerInfer, Song et al., 2024, figure 5). rank: of the matrix that decides what fires,
    the gates or, without them, the up projection; a predictor of rank 2 * rank + 1 is exact. overshoot: rows that the
    planted predictor names over rows that fire. activation: `relu2` of arcee, `relu` of opt; of the gated ones any, of
    which `silu` plants no sparsity and is what other programs compute for them.
    """

    family: str = "llama"
    hidden: int = 1024
    layers: int = 8
    ffn: int = 4096
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 4096
    context: int = 2048
    sparsity: float = 0.9
    hot_share: float = 0.26
    rank: int = 127
    overshoot: float = 1.0
    activation: str = "relu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(f"family {self.family!r} is not known; known are {', '.join(FAMILIES)}")
        if not 0 < self.sparsity < 1 or not 0 < self.hot_share < 0.8:
            raise UserError("sparsity is a share between 0 and 1, the hot share one between 0 and 0.8")
        if not 1 <= self.rank < self.hidden:
            raise UserError(f"gates of rank {self.rank} do not fit {self.hidden} hidden units; give a smaller --rank")
        if not self.overshoot >= 1 or self.overshoot * (1 - self.sparsity) >= 1:
            raise UserError(
                f"a predictor cannot name {self.overshoot} times the neurons that fire; give 1 or a bit more"
            )
        if self.activation != UNGATED.get(self.family, self.activation):
            known = UNGATED[self.family]
            raise UserError(f"the activation of {self.family} is {known}; give --activation {known}")
        _ = self.spec  # refuses sizes that do not fit each other

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate."""
        return self.family not in UNGATED

    @property
    def holds_constant(self) -> bool:
        """Whether residual dimension 0 is kept constant to carry the thresholds: where no norm can add a constant."""
        return self.family != "opt"

    @property
    def predictor_rank(self) -> int:
        """Width of the planted predictor: each direction twice, with both signs, and the constant; whole blocks."""
        return -(-(2 * self.rank + 1) // BLOCK) * BLOCK

    @property
    def config(self) -> dict[str, Any]:
        """`config.json` of the checkpoint."""
        common = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }
        if self.family == "opt":
            return {
                "architectures": ["OPTForCausalLM"],
                "model_type": "opt",
                **common,
                "ffn_dim": self.ffn,
                "word_embed_proj_dim": self.hidden,
                "activation_function": self.activation,
                "do_layer_norm_before": True,
                "enable_bias": True,
                "tie_word_embeddings": True,
            }
        return {
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "model_type": self.family,
            **common,
            "intermediate_size": self.ffn,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": self.activation,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            **({"sliding_window": None} if self.family == "mistral" else {}),
        }

    @property
    def checkpoint_family(self) -> Family:
        """How the family's checkpoints name their tensors."""
        return read_config(self.config)[0]

    @property
    def spec(self) -> ModelSpec:
        """The model as the engine sees it."""
        return read_config(self.config)[1]


def _llama(hidden: int, layers: int, ffn: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden": hidden, "layers": layers, "ffn": ffn, "heads": heads, "kv_heads": heads}
    return {"family": "llama", **sizes, "vocab": 32000}


ARCEE = {"family": "arcee", "activation": "relu2"}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"family": "llama", "hidden": 128, "layers": 2, "ffn": 512, "heads": 4, "kv_heads": 2, "rank": 31},
    "llama-1b": _llama(2048, 22, 5632, 32),
    "llama-3b": _llama(3200, 26, 8640, 32),
    "llama-7b": _llama(4096, 32, 11008, 32),
    "llama-13b": _llama(5120, 40, 13824, 40),
    "mistral-7b": {**_llama(4096, 32, 14336, 32), "family": "mistral", "kv_heads": 8},
    # AFM-4.5B's sizes but for its context, which is 4096 tokens before YaRN stretches it.
    "afm-4.5b": {**_llama(2560, 36, 18432, 20), **ARCEE, "kv_heads": 4, "vocab": 128005, "context": 4096},
    "opt-6.7b": {**_llama(4096, 32, 16384, 32), "family": "opt", "vocab": 50272, "sparsity": 0.96},
}
