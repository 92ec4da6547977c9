"""The files of a checkpoint, beside its weights, that are read and kept."""

from __future__ import annotations

SOURCE_CONFIG = "source_config.json"
# Kept as they are in a model directory; config.json under the name `source_config.json`.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    SOURCE_CONFIG,
)
TOKENIZER_LIMIT = 256 << 20
