"""The files of a source, beside its weights, that packing keeps, and what is remembered of where they came from."""

from __future__ import annotations

from pathlib import Path

from hybrid.checkpoint.kept import SOURCE_CONFIG, TOKENIZER_FILES, TOKENIZER_LIMIT
from hybrid.checkpoint.reader import Checkpoint
from hybrid.store.origin import Origin
from profiler.artifacts import UserError

TOKENIZERS = {"tokenizer.model", "tokenizer.json", "vocab.json"}


def kept_files(checkpoint: Checkpoint, tokenizer: Path | None = None) -> dict[str, Path | bytes]:
    """The checkpoint's files that are kept as they are, or what stands for them, by the name they will have.

    tokenizer: the folder from which all but `config.json` are taken instead.

    Raises:
        UserError: one is not a file, or far too large to be what it is called; or that folder holds no tokenizer.
    """
    kept: dict[str, Path | bytes] = dict(_files_of(checkpoint.path) if checkpoint.made is None else checkpoint.made)
    if tokenizer is None:
        return kept
    others = {name: path for name, path in _files_of(tokenizer).items() if name != SOURCE_CONFIG}
    if not TOKENIZERS & set(others):
        raise UserError(f"{tokenizer} is no folder with a tokenizer: there is no {', '.join(sorted(TOKENIZERS))}")
    return {**{name: content for name, content in kept.items() if name == SOURCE_CONFIG}, **others}


def _files_of(source: Path) -> dict[str, Path]:
    names = {name: "config.json" if name == SOURCE_CONFIG else name for name in TOKENIZER_FILES}
    kept = {name: source / original for name, original in names.items() if (source / original).exists()}
    for path in kept.values():
        if not path.is_file() or path.stat().st_size > TOKENIZER_LIMIT:
            raise UserError(f"{path} is not a file of at most {TOKENIZER_LIMIT >> 20} MiB, as it should be")
    return kept


def origin_of(checkpoint: Checkpoint, activation: str | None, tokenizer: Path | None, name: str | None) -> Origin:
    """Where a checkpoint comes from: the name of what was downloaded, else its files as they are now; and how it was
    to be read.
    """
    kept = {path for path in kept_files(checkpoint, tokenizer).values() if isinstance(path, Path)}
    given = {"activation": activation, "tokenizer": None if tokenizer is None else str(tokenizer.absolute())}
    options = {key: value for key, value in given.items() if value is not None}
    if name is not None:
        return Origin(name, options, {})
    shards = {tensor.shard for tensor in checkpoint.tensors.values()}
    return Origin.of_files(checkpoint.path, options, sorted(kept | shards))
