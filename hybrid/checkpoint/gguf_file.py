"""A GGUF file as a source of a checkpoint: its family and spec, its tensors, the files that stand for a folder's."""

from __future__ import annotations

import json
from pathlib import Path

from hybrid.checkpoint.config import read_config
from hybrid.checkpoint.gguf_config import describe, gguf_family
from hybrid.checkpoint.gguf_rope import FACTORS, llama3_scaling
from hybrid.checkpoint.gguf_tensors import open_gguf_shards
from hybrid.checkpoint.gguf_tokenizer import tokenizer_files
from hybrid.checkpoint.source import Source
from profiler.artifacts import UserError


def open_gguf(path: Path, activation: str | None = None, with_tokenizer: bool = True) -> Source:
    """Read the header of a file, of a split model's first file; no weights yet.

    activation: what the FFN computes, where that is not what the architecture says. with_tokenizer: whether the
    tokenizer is taken out of the file.

    Raises:
        UserError: not a GGUF file, not supported, or damaged; the message says what to do.
    """
    header, tensors = open_gguf_shards(path)
    config, paired, notes = describe(header, tensors, activation)
    factors = tensors.pop(FACTORS, None)
    try:
        family, spec = read_config(config)
        if factors is not None:
            scaling = llama3_scaling(factors, spec.rope_theta, spec.rotary_size)
            config |= {"rope_parameters": scaling} if scaling else {}
            family, spec = read_config(config)
    except UserError as error:
        raise UserError(f"{path}, its metadata read as a config.json: {error}") from error
    made = {"source_config.json": json.dumps(config, indent=1).encode()}
    if with_tokenizer:
        made |= tokenizer_files(header, spec.vocab_size)
    return Source(gguf_family(family, paired), spec, tensors, made, notes)
