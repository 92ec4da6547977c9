"""The model families that can be read, as data: how each names its settings, its activations and its tensors.

A family is added here and nowhere else. What transformers assumes where `config.json` is silent is in `defaults`; what
this engine does not compute is in `only`, so that a checkpoint which needs it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from hybrid.checkpoint.falcon import falcon_layouts
from hybrid.checkpoint.family import Family
from hybrid.checkpoint.gpt_neox import GPT_NEOX

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

_LLAMA_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
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

_UNGATED_MODULES = {ours: theirs for ours, theirs in _LLAMA_MODULES.items() if ours != "layers.{i}.gate"}

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
    keys={**_LLAMA_KEYS, "attention_bias": "attention_bias"},
    defaults=_LLAMA_DEFAULTS,
    only={"mlp_bias": False},
    fixed={"gated": True, "norm": "rms", "positions": "rope"},
    modules=_LLAMA_MODULES,
)

# FATReLU, `x if x > t else 0` of the gate, where t is learned once for the model (ProSparse, Song et al. 2024).
PROSPARSE = replace(
    LLAMA,
    name="prosparse",
    keys={**LLAMA.keys, "activation_cutoff": "hidden_act_param"},
    activations={"fatrelu": "relu"},
)

MISTRAL = Family(
    name="mistral",
    keys={**_LLAMA_KEYS, "sliding_window": "sliding_window"},
    defaults={**_LLAMA_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
    only={"layer_types": None},
    fixed=LLAMA.fixed,
    modules=_LLAMA_MODULES,
)

# Its config.json says relu; its code applies that to gate and up projection alike (TurboSparse, Song et al. 2024).
BAMBOO = replace(MISTRAL, name="bamboo", activations={"relu": "drelu"})

QWEN2 = Family(
    name="qwen2",
    keys={**_LLAMA_KEYS, "sliding_window": "sliding_window"},
    defaults={**_LLAMA_DEFAULTS, "num_key_value_heads": 32, "sliding_window": 4096},
    fixed={**LLAMA.fixed, "qkv_bias": True},
    modules=_LLAMA_MODULES,
    layered_window=True,
)

QWEN3 = Family(
    name="qwen3",
    keys={**QWEN2.keys, "attention_bias": "attention_bias"},
    defaults={**QWEN2.defaults, "head_dim": 128},
    fixed={**LLAMA.fixed, "qk_norm": True},
    modules={
        **_LLAMA_MODULES,
        "layers.{i}.q_norm": "model.layers.{i}.self_attn.q_norm",
        "layers.{i}.k_norm": "model.layers.{i}.self_attn.k_norm",
    },
    layered_window=True,
)

OPT = Family(
    name="opt",
    keys={
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
    },
    defaults={"activation_function": "relu", "enable_bias": True, "tie_word_embeddings": True},
    only={"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
    # torch's LayerNorm default; OPT's learned table begins two rows before position 0.
    fixed={"gated": False, "norm": "layer", "norm_eps": 1e-5, "positions": "learned", "position_offset": 2},
    modules=_OPT_MODULES,
)

ARCEE = Family(
    name="arcee",
    keys={**_LLAMA_KEYS, "attention_bias": "attention_bias", "ffn_bias": "mlp_bias"},
    defaults={**_LLAMA_DEFAULTS, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "mlp_bias": False},
    fixed={"gated": False, "norm": "rms", "positions": "rope"},
    modules=_UNGATED_MODULES,
)

NEMOTRON = Family(
    name="nemotron",
    keys={**ARCEE.keys, "norm_eps": "norm_eps", "rotary_dims": "partial_rotary_factor"},
    defaults={**ARCEE.defaults, "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    fixed={"gated": False, "norm": "layer", "positions": "rope"},
    modules=_UNGATED_MODULES,
    norm_shift=1.0,
)


FAMILIES: Mapping[str, tuple[Family, ...]] = MappingProxyType(
    {
        "LlamaForCausalLM": (LLAMA,),
        "SparseLlamaForCausalLM": (PROSPARSE,),
        "MistralForCausalLM": (MISTRAL,),
        "BambooForCausalLM": (BAMBOO,),
        "Qwen2ForCausalLM": (QWEN2,),
        "Qwen3ForCausalLM": (QWEN3,),
        "OPTForCausalLM": (OPT,),
        "ArceeForCausalLM": (ARCEE,),
        "NemotronForCausalLM": (NEMOTRON,),
        "FalconForCausalLM": falcon_layouts(),
        "GPTNeoXForCausalLM": (GPT_NEOX,),
    }
)

# Tensors that some checkpoints carry and no model reads: rotary frequencies are computed from the spec, and GPT-NeoX's
# causal mask is no bias.
HARMLESS_SUFFIXES = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
