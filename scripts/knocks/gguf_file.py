"""A GGUF file of the tiny model, as llama.cpp's converter writes one, and damage to what it says."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import sentencepiece
from safetensors.torch import load_file

from knocks.bases import CONTEXT, HEADS, HIDDEN, KV_HEADS, LAYERS, NEURONS, TEMPLATE, Bases
from knocks.mutations import FLOATS, HUGE, NUMBERS, TEXTS, damaged_bytes

NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
KINDS = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


@functools.cache
def said(tokenizer: Path) -> dict[str, Any]:
    """The file's keys and values."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    ids = range(model.vocab_size())
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    return {
        "general.name": "tiny",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": NEURONS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.vocab_size": len(ids),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [float(model.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def write(path: Path, bases: Bases, kind: str, values: dict[str, Any], reshape: str | None = None) -> None:
    """The model in a format, with these keys and values; `reshape` names a tensor that is written in another shape."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in values.items():
        _put(writer, key, value)
    for name, tensor in load_file(bases.llama / "model.safetensors").items():
        short = name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        data = tensor.float().numpy()
        if short == reshape:
            data = data.reshape(-1)[: data.size // 2]
        chosen = KINDS[kind] if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        packed = data if data.ndim == 1 else gguf.quantize(data, chosen)
        writer.add_tensor(short, packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        fits = 0 <= value < 1 << 32
        (writer.add_uint32 if fits else writer.add_int64)(key, value if abs(value) < 1 << 62 else 1 << 62)
    elif isinstance(value, float):
        with np.errstate(over="ignore"):
            writer.add_float64(key, value) if abs(value) > 3e38 else writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value.encode("utf-8", "replace").decode())
    elif value:
        writer.add_array(key, value)


def damaged_gguf(path: Path, rng: Random, bases: Bases) -> None:
    """A file of other bytes, or a well-formed one that says something else."""
    kind, values = rng.choice(tuple(KINDS)), dict(said(bases.llama / "tokenizer.model"))
    whole = rng.random() < 0.4
    if not whole:
        key = rng.choice(tuple(values))
        what = rng.random()
        if what < 0.15:
            del values[key]
        elif what < 0.3 and isinstance(values[key], list):
            values[key] = rng.choice((values[key][:-1], values[key] * 2, values[key][:1], values[key][::-1]))
        else:
            values[key] = rng.choice((*NUMBERS, *HUGE, *FLOATS, *TEXTS, True, [1, 2, 3], ["a"], [0.5]))
    write(path, bases, kind, values, "blk.1.ffn_up.weight" if rng.random() < 0.05 else None)
    if whole:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
