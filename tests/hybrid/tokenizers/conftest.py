"""Tokenizers of every kind, trained on a few lines: by session, for reading."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.tokenization_utils_base import generate_merges

from hybrid.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def parse(text: str) -> list[int]:\n    return [int(part) for part in text.split()]",
    "Übung macht den Meister; naïve café, Straße, größer als 42.",
    "你好世界。你好吗。 日本語のテキスト",
] * 20
KINDS = ("llama", "unigram", "json_llama", "json_gpt2", "gpt2", "opt")


def train_sentencepiece(directory: Path, model_type: str, **options) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=model_type,
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())


def train_byte_level() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=names)
    )
    return model


def llama_json(directory: Path) -> tokenizers.Tokenizer:
    """The pieces of a SentencePiece model in the form that Llama's tokenizer.json has."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    skip = {piece for piece, i in vocab.items() if pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i)}
    merges = generate_merges(vocab, scores, skip)
    model = tokenizers.Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    return model


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value))


def make(directory: Path, kind: str) -> Path:
    directory.mkdir(exist_ok=True)
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "llama":
        train_sentencepiece(directory, "bpe")
        extra = {"400": {"content": "<|im_end|>", "special": True}, "450": {"content": "<tool>", "special": False}}
        write_json(directory / "tokenizer_config.json", llama | {"added_tokens_decoder": extra})
    elif kind == "unigram":
        train_sentencepiece(directory, "unigram", add_dummy_prefix=False)
    elif kind == "json_llama":
        train_sentencepiece(directory, "bpe")
        llama_json(directory).save(str(directory / "tokenizer.json"))
        (directory / "tokenizer.model").unlink()
        settings_ = llama | {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(directory / "tokenizer_config.json", settings_)
    else:
        model = train_byte_level()
        if kind == "json_gpt2":
            model.enable_truncation(4)
            model.enable_padding(length=7)
            model.save(str(directory / "tokenizer.json"))
        else:
            model.model.save(str(directory))
        if kind == "opt":
            token = {"content": "</s>", "__type": "AddedToken"}
            opt = {"tokenizer_class": "GPT2Tokenizer", "bos_token": token, "eos_token": token, "pad_token": "<pad>"}
            write_json(directory / "tokenizer_config.json", opt | {"unk_token": token, "add_bos_token": True})
            write_json(directory / "source_config.json", {"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2})
    return directory


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: make(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def loaded(made) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(path) for kind, path in made.items()}
