"""The tokenizer in the metadata of a GGUF file as the files that a checkpoint folder has, chat template included."""

from __future__ import annotations

import json
from typing import Any

from gguf import TokenType

from hybrid.checkpoint.gguf_bpe import find_rule, tokenizer_json
from hybrid.checkpoint.gguf_header import GgufHeader
from hybrid.checkpoint.gguf_sentencepiece import added_tokens, sentencepiece_model
from hybrid.checkpoint.gguf_vocabulary import ENDINGS, MEND, PREFIX, Vocabulary, read_vocabulary
from profiler.artifacts import UserError

TEMPLATE, TEMPLATE_LIMIT = "tokenizer.chat_template", 1 << 20
# Tokens that end a turn where the file does not say which does: those of these names that its chat template writes.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<EOT>")
# What a model's makers recommend: the file's key, and that of generation_config.json.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def tokenizer_files(header: GgufHeader, rows: int) -> dict[str, bytes]:
    """Files by their names; none where the file has no tokenizer. rows: of the embeddings.

    Raises:
        UserError: a tokenizer of a kind that cannot be put back, or a damaged one.
    """
    model = header.metadata.get(f"{PREFIX}model", b"none")
    if model == b"none":
        return {}
    if model not in (b"llama", b"gpt2"):
        raise UserError(f"{header.path} has a tokenizer of kind {model!r:.60}; known are llama and gpt2: {MEND}")
    vocabulary = read_vocabulary(header, rows)
    settings: dict[str, Any] = {
        f"{part}_token": name for part in ("bos", "eos", "unk", "pad") if (name := vocabulary.name(part)) is not None
    }
    try:
        if model == b"llama":
            files = {"tokenizer.model": sentencepiece_model(vocabulary)}
            settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": vocabulary.flag("add_bos_token", True)}
            settings["added_tokens_decoder"] = {
                str(i): {"content": token, "special": vocabulary.kinds[i] is TokenType.CONTROL}
                for i, token in added_tokens(vocabulary).items()
            }
        else:
            files = {"tokenizer.json": tokenizer_json(vocabulary)}
            bos = vocabulary.flag("add_bos_token", find_rule(vocabulary).bos)
            settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bos}
    except UserError as error:
        raise UserError(f"{header.path}: {error}") from error
    if settings["add_bos_token"] and "bos_token" not in settings:
        settings["add_bos_token"] = False
    if templates := _templates(header):
        plain = templates.get("default") if len(templates) == 1 else None
        settings["chat_template"] = plain or [{"name": k, "template": v} for k, v in templates.items()]
    files["tokenizer_config.json"] = json.dumps(settings, ensure_ascii=False, indent=1).encode()
    files["generation_config.json"] = json.dumps(_generation(header, vocabulary, templates), indent=1).encode()
    return files


def _templates(header: GgufHeader) -> dict[str, str]:
    """Chat templates by their names; the one without a name is `default`."""
    found = {}
    for key, value in header.metadata.items():
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            if not isinstance(value, bytes) or len(value) > TEMPLATE_LIMIT:
                raise UserError(f"{header.path}: {key} is not a text of at most 1 MiB; {MEND}")
            name = "default" if key == TEMPLATE else key.removeprefix(f"{TEMPLATE}.")
            try:
                found[name] = value.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{header.path}: {key} is not UTF-8; {MEND}") from error
    return found


def _generation(header: GgufHeader, vocabulary: Vocabulary, templates: dict[str, str]) -> dict[str, Any]:
    """Which tokens end a text, and how the model's makers recommend to sample."""
    ends = {vocabulary.ids[key] for key in ENDINGS if key in vocabulary.ids}
    if "eot_token_id" not in vocabulary.ids:
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
            if kind is TokenType.CONTROL and token in TURN_ENDS and any(token in t for t in templates.values()):
                ends.add(i)
    found: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
    if "bos_token_id" in vocabulary.ids:
        found["bos_token_id"] = vocabulary.ids["bos_token_id"]
    for theirs, ours in SAMPLING.items():
        value = header.metadata.get(f"general.sampling.{theirs}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[ours] = value if isinstance(value, int) else round(value, 6)
    return found
