"""Whole files for the campaign to damage: all random, from one seed, and made once.

Tiny checkpoints of each kind, a model directory that every stage has been at, published predictors, texts, figures of
a machine.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_tokenizer import train_sentencepiece
from tokenizers import ByteLevelBPETokenizer

from hybrid.stages.calibrate import CalibrateSettings, calibrate
from hybrid.stages.evaluate import EvaluationSettings, evaluate
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings, plan
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.shipped import HELDOUT_TEXT, PROFILE_TEXT
from profiler.hardware import read_hardware, write_hardware

HIDDEN, NEURONS, LAYERS, HEADS, KV_HEADS = 32, 96, 2, 4, 2
CONTEXT = 128
VOCABULARY = 400  # of the SentencePiece tokenizer
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@dataclass(frozen=True)
class Bases:
    """Where they are. llama: SentencePiece, safetensors. opt: byte-level BPE as two files, torch's format. sharded:
    `tokenizer.json`, two shards and an index. packed: of `llama`; model: the same with profile, predictors, plan,
    thresholds and evaluation. published: predictors of `model` as others publish them. texts: a text, documents and
    conversations.
    """

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name


def make_bases(folder: Path) -> Bases:
    """All of them in a folder, unless they are there already."""
    bases = Bases(folder)
    if (folder / "complete").exists():
        return bases
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pieces = train_sentencepiece("\n".join(_lines(PROFILE_TEXT, 0, 20)).split("\n"), VOCABULARY)
    words = _byte_level()
    _checkpoint(bases.llama, VOCABULARY, {"tokenizer.model": pieces})
    fast = {"tokenizer.json": words.to_str(pretty=False).encode()}
    _checkpoint(bases.sharded, words.get_vocab_size(), fast, shards=2)
    words.save_model(str(folder))
    kept = {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    _opt(bases.opt, words.get_vocab_size(), kept)
    _texts(bases.texts)
    _published(bases.published)
    write_hardware(folder / "hardware.json", read_hardware("rtx4090-desktop"))
    pack(bases.llama, bases.packed)
    shutil.copytree(bases.packed, bases.model)
    stages(bases.model, bases.texts)
    (folder / "complete").touch()
    return bases


def stages(model: Path, texts: Path) -> None:
    """Everything that later stages add to a packed model."""
    profile(model, [texts / "text.txt"], ProfileSettings(rank=4, steps=5))
    plan(model, PlanSettings(vram=20_000, second_device="cpu"))
    calibrate(model, [texts / "other.txt"], CalibrateSettings(sparsity=0.3))
    evaluate(model, [texts / "third.txt"], EvaluationSettings(tokens=200, layer_tokens=64, threads=1))


def _lines(path: Path, first: int, count: int) -> list[str]:
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line)["text"] for _, line in zip(range(first + count), file, strict=False)]
    return lines[first:]


def _byte_level() -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(_lines(PROFILE_TEXT, 0, 20), vocab_size=330, special_tokens=special)
    return tokenizer


def _random(shape: tuple[int, ...], norm: bool, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator) * 0.1
    return (values + 1 if norm else values).to(torch.bfloat16)


def _checkpoint(folder: Path, vocabulary: int, tokenizer: dict[str, bytes], shards: int = 1) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "relu",
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{n}_proj.weight": (w, HIDDEN) for n, w in (("q", HIDDEN), ("k", kv), ("v", kv))}
        shapes |= {f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN), f"{at}.mlp.down_proj.weight": (HIDDEN, NEURONS)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (NEURONS, HIDDEN) for name in ("gate", "up")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _random(shape, "norm" in name, generator) for name, shape in shapes.items()}
    folder.mkdir()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
        for shard in sorted(set(weight_map.values())):
            save_file({name: tensors[name] for name, at in weight_map.items() if at == shard}, folder / shard)
        _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": weight_map})
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    _json(folder / "config.json", config)
    _beside(
        folder, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    added = {"<tool>": vocabulary - 1} if "tokenizer.model" not in tokenizer else {}
    _json(folder / "added_tokens.json", added)


def _opt(folder: Path, vocabulary: int, tokenizer: dict[str, bytes]) -> None:
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "hidden_size": HIDDEN,
        "ffn_dim": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": HIDDEN,
        "do_layer_norm_before": True,
        "vocab_size": vocabulary,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.embed_tokens.weight": (vocabulary, HIDDEN),
        "decoder.embed_positions.weight": (CONTEXT + 2, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"decoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}.self_attn.{name}.weight": (HIDDEN, HIDDEN), f"{at}.self_attn.{name}.bias": (HIDDEN,)}
        shapes |= {f"{at}.fc1.weight": (NEURONS, HIDDEN), f"{at}.fc1.bias": (NEURONS,)}
        shapes |= {f"{at}.fc2.weight": (HIDDEN, NEURONS), f"{at}.fc2.bias": (HIDDEN,)}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{at}.{norm}.{kind}": (HIDDEN,) for kind in ("weight", "bias")}
    shapes |= {f"decoder.final_layer_norm.{kind}": (HIDDEN,) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(1)
    folder.mkdir()
    tensors = {f"model.{name}": _random(shape, "norm.weight" in name, generator) for name, shape in shapes.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    _json(folder / "config.json", config)
    _beside(folder, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>"})
    _json(folder / "added_tokens.json", {"<more>": vocabulary})


def _beside(folder: Path, tokenizer_config: dict[str, Any]) -> None:
    _json(folder / "tokenizer_config.json", tokenizer_config)
    _json(
        folder / "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    )
    _json(folder / "generation_config.json", {"eos_token_id": [2], "temperature": 0.7, "top_p": 0.9, "do_sample": True})


def _texts(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(("text.txt", "other.txt", "third.txt")):
        (folder / name).write_text("\n".join(_lines(HELDOUT_TEXT, number, 1))[:6000])
    documents = [{"text": text[:1500]} for text in _lines(HELDOUT_TEXT, 3, 4)]
    chats = [
        {"messages": [{"role": r, "content": c[:300]} for r, c in (("user", a), ("assistant", a[300:]))]}
        for a in _lines(HELDOUT_TEXT, 5, 4)
    ]
    for name, lines in (("documents.jsonl", documents), ("chats.jsonl", chats)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _published(folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(2)
    for layer in range(LAYERS):
        shapes = {"fc1.weight": (8, HIDDEN), "fc2.weight": (NEURONS, 8)}
        tensors = {name: _random(shape, False, generator) for name, shape in shapes.items()}
        torch.save(tensors, folder / f"model_{layer}.pt")
        torch.save(torch.randint(0, 1000, (NEURONS,), generator=generator), folder / f"activation_{layer}.pt")


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
