"""What llama.cpp calls a model's tensors and sizes, and the order in which it has the rows of queries and keys."""

from __future__ import annotations

import gguf
import torch

from hybrid.spec import ModelSpec

MODULES = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor: `layers.3.q.weight` -> `blk.3.attn_q.weight`."""
    module, _, kind = name.rpartition(".")
    if module.startswith("layers."):
        _, layer, part = module.split(".")
        return f"blk.{layer}.{MODULES[part]}.{kind}"
    return f"{MODULES[module]}.{kind}"


def permute(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Query or key rows in llama.cpp's order: it rotates neighbours, checkpoints rotate halves of a head."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def describe(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """Write the sizes that every architecture has."""
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.n_neurons)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    if spec.norm == "layer":
        writer.add_layer_norm_eps(spec.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_rope_dimension_count(spec.rotary_size)
    writer.add_vocab_size(spec.vocab_size)
