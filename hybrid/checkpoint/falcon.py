"""Falcon as data: one class of transformers whose config.json chooses between layouts (Almazrouei et al. 2023).

In 7B attention and FFN read the same state through one norm, and all heads share one key head; in 40B and 180B they
read it through a norm each, and groups of heads share a key head. The layouts before them compute one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid.checkpoint.family import Family


def _layout(
    when: Mapping[str, tuple[Any, ...]], norms: Mapping[str, str], fixed: Mapping[str, Any], grouped: bool = False
) -> Family:
    """A layout of Falcon. norms: this project's name -> the checkpoint's."""
    layer = "transformer.h.{i}"
    keys = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_neurons": "ffn_hidden_size",
        "n_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "activation": "activation",
        "norm_eps": "layer_norm_epsilon",
        "attention_bias": "bias",
        "ffn_bias": "bias",
        "tied_embeddings": "tie_word_embeddings",
    }
    modules = {
        "embed": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        **{f"layers.{{i}}.{part}": f"{layer}.self_attention.query_key_value" for part in "qkv"},
        "layers.{i}.o": f"{layer}.self_attention.dense",
        "layers.{i}.up": f"{layer}.mlp.dense_h_to_4h",
        "layers.{i}.down": f"{layer}.mlp.dense_4h_to_h",
        **{f"layers.{{i}}.{ours}": f"{layer}.{theirs}" for ours, theirs in norms.items()},
    }
    return Family(
        name="falcon",
        keys={**keys, "n_kv_heads": "num_kv_heads"} if grouped else keys,
        defaults={
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
            "num_ln_in_parallel_attn": None,
            "num_kv_heads": None,
            "ffn_hidden_size": None,
            "activation": "gelu",
            "layer_norm_epsilon": 1e-5,
            "bias": False,
            "tie_word_embeddings": True,
            "max_position_embeddings": 2048,
        },
        only={"alibi": False},
        fixed={"gated": False, "norm": "layer", "positions": "rope", "shared_norm": len(norms) == 1, **fixed},
        modules=modules,
        when=when,
        fused_heads=True,
    )


def falcon_layouts() -> tuple[Family, ...]:
    """Every layout that computes what its config.json says."""
    number, before = "num_ln_in_parallel_attn", {"attn_norm": "input_layernorm"}
    new = {"new_decoder_architecture": (True,), "parallel_attn": (True,)}
    found = [  # 40B, and 11B with one norm
        _layout({**new, number: (None, 2)}, {"attn_norm": "ln_attn", "ffn_norm": "ln_mlp"}, {"parallel": True}, True),
        _layout({**new, number: (1,)}, before, {"parallel": True}, True),
    ]
    for multi_query, heads in ((True, {"n_kv_heads": 1}), (False, {})):
        old = {"new_decoder_architecture": (False,), "multi_query": (multi_query,), number: (None, 1)}
        parallel, serial = {**old, "parallel_attn": (True,)}, {**old, "parallel_attn": (False,)}
        found += [  # 7B is the parallel one with one key head
            _layout(parallel, before, {**heads, "parallel": True}),
            _layout(serial, {**before, "ffn_norm": "post_attention_layernorm"}, heads),
        ]
    return tuple(found)
