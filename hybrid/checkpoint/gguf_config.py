"""The metadata of a GGUF file as the `config.json` that the same model has at Hugging Face, and its family.

Keys are those of llama.cpp's `gguf-py/gguf/constants.py`; what a key that is missing means is what llama.cpp takes it
for. The file does not say which activation an FFN has: its architecture does, and `--activation` stands above that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from hybrid.checkpoint.family import ACTIVATIONS, Family
from hybrid.checkpoint.gguf_header import GgufHeader
from hybrid.checkpoint.tensors import SourceTensor
from profiler.artifacts import UserError

# What llama.cpp computes for an architecture: the class at Hugging Face, its activation, whether q and k are paired.
ARCHITECTURES: Mapping[str, tuple[str, str, bool]] = MappingProxyType(
    {
        "llama": ("LlamaForCausalLM", "silu", True),
        "qwen2": ("Qwen2ForCausalLM", "silu", False),
        "qwen3": ("Qwen3ForCausalLM", "silu", False),
        "arcee": ("ArceeForCausalLM", "relu2", True),
        "nemotron": ("NemotronForCausalLM", "relu2", False),
    }
)
MODULES: Mapping[str, str] = MappingProxyType(
    {
        "embed": "token_embd",
        "final_norm": "output_norm",
        "head": "output",
        "layers.{i}.attn_norm": "blk.{i}.attn_norm",
        "layers.{i}.q": "blk.{i}.attn_q",
        "layers.{i}.k": "blk.{i}.attn_k",
        "layers.{i}.v": "blk.{i}.attn_v",
        "layers.{i}.o": "blk.{i}.attn_output",
        "layers.{i}.q_norm": "blk.{i}.attn_q_norm",
        "layers.{i}.k_norm": "blk.{i}.attn_k_norm",
        "layers.{i}.ffn_norm": "blk.{i}.ffn_norm",
        "layers.{i}.gate": "blk.{i}.ffn_gate",
        "layers.{i}.up": "blk.{i}.ffn_up",
        "layers.{i}.down": "blk.{i}.ffn_down",
    }
)
# Keys that change what is computed, and the values with which they do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "expert_count": (0,),
        "leading_dense_block_count": (0,),
        "attention.causal": (True,),
        "attention.max_alibi_bias": (0.0,),
        "attention.clamp_kqv": (0.0,),
        "attention.scale": (0.0,),
        "attention.temperature_scale": (0.0,),
        "attn_logit_softcapping": (0.0,),
        "final_logit_softcapping": (0.0,),
        "logit_scale": (0.0, 1.0),
        "embedding_scale": (0.0, 1.0),
        "residual_scale": (0.0, 1.0),
        "use_parallel_residual": (False,),
        "swin_norm": (False,),
        "rope.scale_linear": (0.0, 1.0),
    }
)
SPARSE_NAMES = re.compile(r"relu|prosparse|bamboo|turbo-?sparse|sparse-?llm", re.IGNORECASE)
NAME_KEYS = re.compile(r"general\.(name|basename|finetune|tags|base_model\.\d+\.(name|repo_url))")
OPTION = "--activation relu, relu2, drelu, fatrelu:THRESHOLD or silu"


def gguf_family(family: Family, paired: bool) -> Family:
    """A family whose tensors have llama.cpp's names; its converter has added the shift of norms to them."""
    modules = {ours: MODULES[ours] for ours in family.modules}
    return replace(family, modules=modules, norm_shift=0.0, paired_heads=paired)


def describe(
    header: GgufHeader, tensors: Mapping[str, SourceTensor], activation: str | None
) -> tuple[dict[str, Any], bool, tuple[str, ...]]:
    """`config.json` of the model, whether its heads are paired, and what is to be told about what was assumed.

    activation: what the user says that the FFN has: a name of transformers', `drelu`, or `fatrelu:THRESHOLD`.

    Raises:
        UserError: no language model, an architecture or an option that is not supported, or a key that is not there.
    """
    keys = _Keys(header)
    name = keys.architecture
    class_name, assumed, paired = ARCHITECTURES[name]
    keys.refuse_what_is_not_computed()
    config: dict[str, Any] = {
        "architectures": [class_name],
        "vocab_size": _vocabulary(header, tensors),
        "hidden_size": keys.integer("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": keys.integer("attention.head_count"),
        "max_position_embeddings": keys.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": name not in ("qwen2", "qwen3") and "blk.0.attn_q.bias" in tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
        "use_sliding_window": keys.integer("attention.sliding_window", 0) > 0,
        "max_window_layers": 0,
    }
    if "blk.0.ffn_up.bias" in tensors or "blk.0.ffn_down.bias" in tensors:
        config["mlp_bias"] = True
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = keys.integer("attention.head_count_kv", heads)
    config |= _head_size(keys, config["hidden_size"], heads)
    epsilon = "layer_norm_epsilon" if name == "nemotron" else "layer_norm_rms_epsilon"
    config["norm_eps" if name == "nemotron" else "rms_norm_eps"] = keys.number(f"attention.{epsilon}")
    if (scaling := keys.text("rope.scaling.type", "none")) != "none" or keys.number("rope.scaling.factor", 0) > 1:
        config["rope_scaling"] = {"rope_type": scaling if scaling != "none" else "linear"}
    if config["sliding_window"] and name == "llama":
        config["architectures"] = ["MistralForCausalLM"]
    notes = _choose_activation(header, config, name, assumed, activation)
    return config, paired, notes


class _Keys:
    """Keys of the model's architecture, of one type each."""

    def __init__(self, header: GgufHeader) -> None:
        self._path, self._metadata = header.path, header.metadata
        kind = self._of_type("general.type", bytes, b"model")
        if kind != b"model":
            raise UserError(f"{self._path} holds {_shown(kind)}, not a model; give the file of the model itself")
        self.architecture = self._of_type("general.architecture", bytes).decode(errors="replace")
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{self._path} is of architecture {_shown(self.architecture)}, which is not supported as GGUF; "
                f"supported are {', '.join(ARCHITECTURES)}. Pack the Hugging Face checkpoint instead"
            )

    def refuse_what_is_not_computed(self) -> None:
        """Options of the architecture under which this engine would compute something else."""
        for key, neutral in NEUTRAL.items():
            full = f"{self.architecture}.{key}"
            value = self._metadata.get(full, neutral[0])
            if value not in neutral:
                raise UserError(f"{self._path}: {full} is {_shown(value)}; models with it are not supported")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; of a list that has one for each layer the one that they all are."""
        full = f"{self.architecture}.{key}"
        value = self._metadata.get(full)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        elif isinstance(value, list):
            raise UserError(f"{self._path}: {full} differs between layers, which is not supported")
        if value is None and default is not None:
            return default
        return int(self._checked(full, value, int))

    def number(self, key: str, default: float | None = None) -> float:
        """A number; the shortest that is the same in fp32, as config.json has it: 1e-5 and not 9.99999974737875e-06."""
        full = f"{self.architecture}.{key}"
        value = self._of_type(full, float, default)
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self._of_type(f"{self.architecture}.{key}", bytes, default.encode())
        return str(value.decode(errors="replace"))

    def _of_type(self, key: str, kind: type, default: object = None) -> Any:
        value = self._metadata.get(key, default)
        return self._checked(key, value, kind)

    def _checked(self, key: str, value: object, kind: type) -> Any:
        if value is None:
            raise UserError(f"{self._path} has no {key}; is it whole? Download it again")
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            return float(value)
        if type(value) is not kind:
            expected = {int: "a whole number", float: "a number", bytes: "a text"}[kind]
            raise UserError(f"{self._path}: {key} is {_shown(value)}; {expected} is expected")
        return value


def _vocabulary(header: GgufHeader, tensors: Mapping[str, SourceTensor]) -> int:
    embeddings = tensors.get("token_embd.weight")
    if embeddings is None:
        raise UserError(f"{header.path} has no token_embd.weight: it holds no language model, or a part of one")
    return embeddings.shape[0]


def _head_size(keys: _Keys, hidden: int, heads: int) -> dict[str, Any]:
    """`head_dim`, and the part of it that is rotated where that is not all."""
    if heads < 1:
        raise UserError(f"{keys.architecture}.attention.head_count is {heads}; a model has heads")
    size = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", size) != size:
        raise UserError(f"{keys.architecture}.attention.value_length is not key_length, which is not supported")
    found: dict[str, Any] = {"head_dim": size}
    rotated = keys.integer("rope.dimension_count", size)
    if rotated != size:
        shares = (rotated / max(size, 1), (rotated + 0.5) / max(size, 1))  # the quotient may be a bit too small
        found["partial_rotary_factor"] = next((s for s in shares if int(s * size) == rotated), shares[0])
    elif keys.architecture == "nemotron":
        found["partial_rotary_factor"] = 1.0
    return found


def _choose_activation(
    header: GgufHeader, config: dict[str, Any], name: str, assumed: str, asked: str | None
) -> tuple[str, ...]:
    """Write the activation into the config; says what was assumed."""
    kind, _, threshold = (assumed if asked is None else asked).partition(":")
    config["hidden_act"] = kind
    if kind in ("drelu", "fatrelu") and name == "llama":
        config["hidden_act"] = "relu" if kind == "drelu" else kind
        config["architectures"] = ["BambooForCausalLM" if kind == "drelu" else "SparseLlamaForCausalLM"]
    elif kind not in ACTIVATIONS:
        raise UserError(f"activation {asked!r} is not known for architecture {name}; give {OPTION}")
    if (kind == "fatrelu") != bool(threshold):
        raise UserError(f"activation {asked!r} is not understood; give {OPTION}")
    if threshold:
        try:
            config["hidden_act_param"] = float(threshold)
        except ValueError as error:
            raise UserError(f"activation {asked!r}: {threshold!r} is not a number; give {OPTION}") from error
    if asked is not None or assumed != "silu":
        return ()
    texts = [header.path.name.encode()]
    for key, value in header.metadata.items():
        if NAME_KEYS.fullmatch(key):
            texts += [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, bytes)]
    for text in texts:
        if SPARSE_NAMES.search(text.decode(errors="replace")):
            raise UserError(
                f"{header.path} calls itself {_shown(text)}, and GGUF has no field for the activation of the FFN "
                f"(llama.cpp computes {assumed} for architecture {name}); say which it is: {OPTION}"
            )
    return (
        f"GGUF does not say which activation the FFN has; architecture {name} means {assumed}. If this model was "
        "trained with ReLU, pack it again with --activation relu",
    )


def _shown(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
