"""The model families that can be read, as data: how each names its settings and its tensors.

A family is added here and nowhere else. What transformers assumes where `config.json` is silent is in `defaults`; what
this engine does not compute is in `only`, so that a checkpoint which needs it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Family:
    """One architecture.

    keys: ModelSpec field -> key of config.json. defaults: key -> value where config.json has none. only: key -> the one
    value that is supported. fixed: ModelSpec fields that are the same for all its models. modules: this project's name
    of a module -> the checkpoint's; `{i}` is the layer.
    """

    name: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    only: Mapping[str, Any]
    fixed: Mapping[str, Any]
    modules: Mapping[str, str]


_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_neurons": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}

_LLAMA_MODULES = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.q": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.k": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.v": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.o": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.gate": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.up": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.down": "model.layers.{i}.mlp.down_proj",
}

_OPT_MODULES = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
    "layers.{i}.attn_norm": "model.decoder.layers.{i}.self_attn_layer_norm",
    "layers.{i}.q": "model.decoder.layers.{i}.self_attn.q_proj",
    "layers.{i}.k": "model.decoder.layers.{i}.self_attn.k_proj",
    "layers.{i}.v": "model.decoder.layers.{i}.self_attn.v_proj",
    "layers.{i}.o": "model.decoder.layers.{i}.self_attn.out_proj",
    "layers.{i}.ffn_norm": "model.decoder.layers.{i}.final_layer_norm",
    "layers.{i}.up": "model.decoder.layers.{i}.fc1",
    "layers.{i}.down": "model.decoder.layers.{i}.fc2",
}

LLAMA = Family(
    name="llama",
    keys=MappingProxyType({**_LLAMA_KEYS, "attention_bias": "attention_bias"}),
    defaults=MappingProxyType(
        {
            "num_key_value_heads": None,
            "head_dim": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_bias": False,
        }
    ),
    only=MappingProxyType({"mlp_bias": False}),
    fixed=MappingProxyType({"gated": True, "norm": "rms", "positions": "rope"}),
    modules=MappingProxyType(_LLAMA_MODULES),
)

MISTRAL = Family(
    name="mistral",
    keys=MappingProxyType({**_LLAMA_KEYS, "sliding_window": "sliding_window"}),
    defaults=MappingProxyType(
        {
            "num_key_value_heads": 8,
            "head_dim": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "sliding_window": 4096,
        }
    ),
    only=MappingProxyType({"layer_types": None}),
    fixed=MappingProxyType({"gated": True, "norm": "rms", "positions": "rope"}),
    modules=MappingProxyType(_LLAMA_MODULES),
)

OPT = Family(
    name="opt",
    keys=MappingProxyType(
        {
            "vocab_size": "vocab_size",
            "hidden_size": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_neurons": "ffn_dim",
            "n_heads": "num_attention_heads",
            "max_positions": "max_position_embeddings",
            "activation": "activation_function",
            "attention_bias": "enable_bias",
            "ffn_bias": "enable_bias",
            "tied_embeddings": "tie_word_embeddings",
        }
    ),
    defaults=MappingProxyType({"activation_function": "relu", "enable_bias": True, "tie_word_embeddings": True}),
    only=MappingProxyType(
        {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    ),
    # torch's LayerNorm default; OPT's learned table begins two rows before position 0.
    fixed=MappingProxyType(
        {"gated": False, "norm": "layer", "norm_eps": 1e-5, "positions": "learned", "position_offset": 2}
    ),
    modules=MappingProxyType(_OPT_MODULES),
)

ARCEE = Family(
    name="arcee",
    keys=MappingProxyType({**_LLAMA_KEYS, "attention_bias": "attention_bias", "ffn_bias": "mlp_bias"}),
    defaults=MappingProxyType(
        {
            "num_key_value_heads": None,
            "head_dim": None,
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
        }
    ),
    only=MappingProxyType({}),
    fixed=MappingProxyType({"gated": False, "norm": "rms", "positions": "rope"}),
    modules=MappingProxyType({ours: theirs for ours, theirs in _LLAMA_MODULES.items() if ours != "layers.{i}.gate"}),
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"LlamaForCausalLM": LLAMA, "MistralForCausalLM": MISTRAL, "OPTForCausalLM": OPT, "ArceeForCausalLM": ARCEE}
)

# Tensors that some checkpoints carry and no model reads: rotary frequencies are computed from the spec.
HARMLESS_SUFFIXES = (".rotary_emb.inv_freq",)
