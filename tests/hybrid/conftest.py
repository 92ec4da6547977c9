"""Tiny random checkpoints as other people write them: made by transformers from a seed, with trained tokenizers.

`make_llama`, `make_mistral`, `make_opt`, `make_arcee` and, of any other family, `make_family` are factories of session
scope:

    path = make_llama(tmp_path)                                  relu, grouped key-value heads, untied, bf16, 3 layers
    path = make_llama(tmp_path, hidden_act="silu", tie_word_embeddings=True)      any key of the config
    path = make_llama(tmp_path, rope_parameters=LLAMA3_ROPE)     (the fixture `llama3_rope`)
    path = make_opt(tmp_path, dtype=torch.float32, seed=7)       another type of the file, other weights
    path = make_family("falcon", tmp_path, bias=True)

Each writes a new folder inside the one it is given and returns its path: config.json, model.safetensors and tokenizer
files, as `save_pretrained` does. `transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)` is the
oracle. All parameters are random, biases and norms too, so that a forgotten one shows: matrices with a standard
deviation of 0.1, norms about 1. About half of the neurons fire for a token under relu and relu2, logits are of the
order of 1.
Sizes are odd on purpose: no dimension is a multiple of what a vector register holds, except where heads demand it.

transformers has no classes for `bamboo` and `prosparse`: their checkpoints are a Mistral's and a Llama's whose
config.json names them. Their oracles are Mistral and Llama with the FFNs of `tests/hybrid/model/test_parity.py`.

The vocabulary is exactly the tokenizer's. All but OPT have a SentencePiece `tokenizer.model` with byte
fallback (`<unk>` 0, `<s>` 1, `</s>` 2, a beginning-of-sequence token is added); OPT has a GPT-2 `vocab.json` and
`merges.txt` (`<s>` 0, `<pad>` 1, `</s>` 2 which opens every text, `<unk>` 3).

`llama_checkpoint`, `opt_checkpoint` are one of each; `llama_directory`, `opt_directory` the same packed: for reading.
`complete` continues prompts with any engine, `passages_of` cuts texts for `hybrid.stages.quality`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from tiny_tokenizer import train_sentencepiece
from tokenizers import ByteLevelBPETokenizer

from hybrid.runtime.engine import Engine
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.stages.pack import pack
from hybrid.stages.quality import Passage, read_passages
from hybrid.stages.texts import Corpus

MakeCheckpoint = Callable[..., Path]
Complete = Callable[[Engine, Sequence[Sequence[int]], int], list[list[int]]]

TEXT = """The brown fox runs over the lazy dog, and the dog sleeps on.
A neuron that fires for one token may be silent for the next one.
def add(left, right):
    return left + right
In the beginning there was a file; the file was read, and it was good.
Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 1999. Letters: ä ö ü é è ñ ø å.
Hot neurons live on the GPU, cold neurons live in memory, and all of them are summed."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

LLAMA_SIZES: dict[str, Any] = {
    "hidden_size": 60,  # 6 heads of 10
    "intermediate_size": 123,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "relu",
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
OPT_SIZES: dict[str, Any] = {
    "hidden_size": 52,  # 4 heads of 13
    "ffn_dim": 157,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "activation_function": "relu",
}
FALCON_SIZES: dict[str, Any] = {
    "hidden_size": 60,  # 6 heads of 10
    "ffn_hidden_size": 123,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "max_position_embeddings": 256,
    "new_decoder_architecture": True,
    "activation": "relu",
}
# The class of the config, and what it is given beside LLAMA_SIZES.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 24}),
    "bamboo": (transformers.MistralConfig, {"sliding_window": 24}),
    "prosparse": (transformers.LlamaConfig, {"hidden_act_param": 0.2}),
    "arcee": (transformers.ArceeConfig, {"hidden_act": "relu2"}),
    "nemotron": (transformers.NemotronConfig, {"hidden_act": "relu2", "partial_rotary_factor": 0.4}),
    "qwen2": (transformers.Qwen2Config, {"hidden_act": "silu"}),
    "qwen3": (transformers.Qwen3Config, {"hidden_act": "silu", "head_dim": 14}),
    "falcon": (transformers.FalconConfig, FALCON_SIZES),
    "gpt_neox": (transformers.GPTNeoXConfig, {"num_key_value_heads": 6, "layer_norm_eps": 1e-5, "rotary_pct": 0.4}),
}
# What transformers does not know: the class and its activation, written over those of another in config.json.
CLASSES = {"bamboo": ("BambooForCausalLM", "relu"), "prosparse": ("SparseLlamaForCausalLM", "fatrelu")}


def fill_with_noise(model: torch.nn.Module, seed: int, deviation: float) -> None:
    """Give every parameter random values; vectors of norms stay near 1, biases are as large as matrix entries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = any(part in name for part in ("norm", "ln_"))
            noise = torch.randn(parameter.shape, generator=generator) * deviation
            parameter.copy_(1 + noise if norm and name.endswith("weight") else noise)


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A SentencePiece BPE model with byte fallback, trained on a few lines."""
    return train_sentencepiece(TEXT.split("\n") * 4, 389, character_coverage=0.99)


@pytest.fixture(scope="session")
def gpt2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of `vocab.json` and `merges.txt` of a byte-level BPE trained on a few lines."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(TEXT.split("\n"), vocab_size=331, min_frequency=1, special_tokens=special)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save_model(str(folder))
    return {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}


@pytest.fixture(scope="session")
def llama3_rope() -> dict[str, Any]:
    """`rope_parameters` of Llama 3.1's kind whose three bands of frequencies all occur in a tiny model."""
    return dict(LLAMA3_ROPE)


@pytest.fixture(scope="session")
def make_family(sentencepiece_model: bytes) -> MakeCheckpoint:
    """`make_family(name, folder, seed=0, dtype=torch.bfloat16, deviation=0.1, **config) -> Path`: one of `FAMILIES`."""

    def make(name: str, folder: Path, **options: Any) -> Path:
        config, defaults = FAMILIES[name]
        return _make_with_sentencepiece(name, config, folder, sentencepiece_model, {**defaults, **options})

    return make


@pytest.fixture(scope="session")
def make_llama(make_family: MakeCheckpoint) -> MakeCheckpoint:
    """`make_family` of Llama: `make_llama(folder, ...)`."""
    return functools.partial(make_family, "llama")


@pytest.fixture(scope="session")
def make_mistral(make_family: MakeCheckpoint) -> MakeCheckpoint:
    """`make_family` of Mistral; a window of 24 tokens."""
    return functools.partial(make_family, "mistral")


@pytest.fixture(scope="session")
def make_arcee(make_family: MakeCheckpoint) -> MakeCheckpoint:
    """`make_family` of Arcee; relu2, without a gate."""
    return functools.partial(make_family, "arcee")


@pytest.fixture(scope="session")
def make_opt(gpt2_tokenizer: dict[str, bytes]) -> MakeCheckpoint:
    """`make_opt(folder, seed=0, dtype=torch.bfloat16, deviation=0.1, **config) -> Path`; always tied, as OPT is."""

    def make(folder: Path, **options: Any) -> Path:
        sizes = {**OPT_SIZES, "vocab_size": len(json.loads(gpt2_tokenizer["vocab.json"]))}
        path = _make("opt", transformers.OPTConfig, folder, sizes, options)
        for name, content in gpt2_tokenizer.items():
            (path / name).write_bytes(content)
        _write_json(
            path / "tokenizer_config.json",
            {
                "tokenizer_class": "GPT2Tokenizer",
                "add_bos_token": True,
                "add_prefix_space": False,
                "errors": "replace",
                "bos_token": "</s>",
                "eos_token": "</s>",
                "unk_token": "</s>",
                "pad_token": "<pad>",
            },
        )
        _write_json(
            path / "special_tokens_map.json",
            {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
        )
        return path

    return make


def _make_with_sentencepiece(name: str, config: Any, folder: Path, model: bytes, options: dict[str, Any]) -> Path:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    sizes = {} if name == "falcon" else LLAMA_SIZES
    path = _make(name, config, folder, {**sizes, "vocab_size": pieces}, options)
    if name in CLASSES:
        settings, (class_name, activation) = json.loads((path / "config.json").read_text()), CLASSES[name]
        _write_json(path / "config.json", {**settings, "architectures": [class_name], "hidden_act": activation})
    (path / "tokenizer.model").write_bytes(model)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    _write_json(
        path / "tokenizer_config.json", {**settings, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    return path


def _make(name: str, config: Any, folder: Path, sizes: dict[str, Any], options: dict[str, Any]) -> Path:
    options = dict(options)
    seed, dtype = options.pop("seed", 0), options.pop("dtype", torch.bfloat16)
    deviation = options.pop("deviation", 0.1)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**sizes, **options}), dtype=torch.float32)
    fill_with_noise(model, seed, deviation)
    path = folder / f"{name}-{len(list(folder.iterdir()))}"
    model.to(dtype).save_pretrained(path)
    return path


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))


@pytest.fixture(scope="session")
def llama_checkpoint(make_llama: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Llama checkpoint for tests that only read it (or copy it to change the copy)."""
    return make_llama(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def opt_checkpoint(make_opt: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One OPT checkpoint for tests that only read it (or copy it to change the copy)."""
    return make_opt(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def llama_directory(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama_checkpoint` packed, for tests that only read it (or copy it to change the copy)."""
    return pack(llama_checkpoint, tmp_path_factory.mktemp("packed") / "llama").destination


@pytest.fixture(scope="session")
def opt_directory(opt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`opt_checkpoint` packed, for tests that only read it (or copy it to change the copy)."""
    return pack(opt_checkpoint, tmp_path_factory.mktemp("packed") / "opt").destination


@pytest.fixture(scope="session")
def complete() -> Complete:
    """`complete(engine, prompts, tokens)`: so many greedy ids after each of the prompts, decoded together."""

    def run(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        sequences = [TokenSequence(list(ids), params, engine.tokenizer) for ids in prompts]
        list(engine.run(sequences))
        return [sequence.output_ids for sequence in sequences]

    return run


@pytest.fixture
def passages_of(tmp_path: Path) -> Callable[[Engine, Sequence[str], int], list[Passage]]:
    """`passages_of(engine, texts, context)`: documents as an evaluation cuts them."""

    def cut(engine: Engine, texts: Sequence[str], context: int) -> list[Passage]:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return read_passages(Corpus.open([path], engine.tokenizer), context, None)[0]

    return cut


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text that is long enough to count on."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs away, far away. " * 60)
    return path
