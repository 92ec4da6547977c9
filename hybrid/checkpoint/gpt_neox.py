"""GPT-NeoX as data: Pythia and GPT-NeoX-20B (Black et al. 2022; Biderman et al. 2023)."""

from __future__ import annotations

from hybrid.checkpoint.family import ACTIVATIONS, Family

_LAYER = "gpt_neox.layers.{i}"

GPT_NEOX = Family(
    name="gpt_neox",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_neurons": "intermediate_size",
        "n_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "attention_bias": "attention_bias",
        "tied_embeddings": "tie_word_embeddings",
        "parallel": "use_parallel_residual",
        "rotary_dims": "rotary_pct",
        "rope_theta": "rotary_emb_base",
    },
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rotary_pct": 0.25,
    },
    fixed={"gated": False, "norm": "layer", "positions": "rope", "ffn_bias": True},
    activations={**ACTIVATIONS, "gelu_fast": "gelu_tanh"},
    modules={
        "embed": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "layers.{i}.attn_norm": f"{_LAYER}.input_layernorm",
        **{f"layers.{{i}}.{part}": f"{_LAYER}.attention.query_key_value" for part in "qkv"},
        "layers.{i}.o": f"{_LAYER}.attention.dense",
        "layers.{i}.ffn_norm": f"{_LAYER}.post_attention_layernorm",
        "layers.{i}.up": f"{_LAYER}.mlp.dense_h_to_4h",
        "layers.{i}.down": f"{_LAYER}.mlp.dense_4h_to_h",
    },
    fused_heads=True,
)
