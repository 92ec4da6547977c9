"""A checkpoint's tokenizer as GGUF metadata, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from gguf import TokenType
from tokenizers import Tokenizer

ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0  # what the converter gives tokens that SentencePiece does not know


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Tokens, merges or scores, special tokens and chat template; nothing where the folder has no tokenizer."""
    settings = _read(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").exists():
        names = _write_bpe(writer, folder / "tokenizer.json", settings)
    elif (folder / "tokenizer.model").exists():
        names = _write_sentencepiece(writer, folder / "tokenizer.model", settings)
    else:
        return
    add = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "unk_token": writer.add_unk_token_id,
        "pad_token": writer.add_pad_token_id,
    }
    for key, write in add.items():
        token = settings.get(key)
        name = token["content"] if isinstance(token, dict) else token
        if name in names:
            write(names[name])
    if isinstance(settings.get("add_bos_token"), bool):
        writer.add_add_bos_token(settings["add_bos_token"])
    template = folder / "chat_template.jinja"
    if template.exists() or "chat_template" in settings:
        writer.add_chat_template(template.read_text() if template.exists() else settings["chat_template"])


def _write_sentencepiece(writer: gguf.GGUFWriter, path: Path, settings: dict[str, Any]) -> dict[str, int]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    added = {int(k): v for k, v in settings.get("added_tokens_decoder", {}).items()}
    size = max([model.get_piece_size(), *(i + 1 for i in added)])
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores, kinds = [PADDING_SCORE] * size, [TokenType.UNUSED] * size
    for i in range(model.get_piece_size()):
        tokens[i], scores[i], kinds[i] = model.id_to_piece(i), model.get_score(i), _kind(model, i)
    for i, entry in added.items():
        kinds[i] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        tokens[i] = entry["content"] if entry.get("special") else entry["content"].replace("\u2581", " ")
        scores[i] = ADDED_SCORE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if isinstance(settings.get("add_prefix_space"), bool):
        writer.add_add_space_prefix(settings["add_prefix_space"])
    return {token: i for i, token in enumerate(tokens)}


def _kind(model: sentencepiece.SentencePieceProcessor, i: int) -> TokenType:
    if model.is_unknown(i):
        return TokenType.UNKNOWN
    if model.is_control(i):
        return TokenType.CONTROL
    if model.is_unused(i):
        return TokenType.UNUSED
    return TokenType.BYTE if model.is_byte(i) else TokenType.NORMAL


def _write_bpe(writer: gguf.GGUFWriter, path: Path, settings: dict[str, Any]) -> dict[str, int]:
    tokenizer, body = Tokenizer.from_file(str(path)), _read(path)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    size = max(vocabulary.values()) + 1
    names = {i: token for token, i in vocabulary.items()}
    kinds = []
    for i in range(size):
        special = added[i].special if i in added else None
        plain = TokenType.NORMAL if i in names else TokenType.UNUSED
        kinds.append(plain if special is None else TokenType.CONTROL if special else TokenType.USER_DEFINED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(settings.get("gguf_pre", "gpt-2"))
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    return vocabulary


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
