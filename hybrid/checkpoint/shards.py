"""Finds the weight files of a checkpoint folder and every tensor in them; an index of others is believed in nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid.checkpoint.safetensors_file import open_safetensors
from hybrid.checkpoint.tensors import SourceTensor
from hybrid.checkpoint.torch_file import open_torch_file
from profiler.artifacts import UserError, read_json_object

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_LIMIT = 16 << 20
PLAIN_NAME = re.compile(r"[ -.0-\[\]-~]{1,255}")  # printable ASCII without slashes, as long as file systems take
DOWNLOAD = "download the checkpoint again"


def open_shards(directory: Path, harmless: Callable[[str], bool]) -> dict[str, SourceTensor]:
    """Every tensor of a checkpoint, by the checkpoint's own names; `harmless` names may be missing from an index.

    Raises:
        UserError: no weights, a shard is missing or damaged, or the shards are not what the index says.
    """
    found = next((directory / name for name in WEIGHT_FILES if (directory / name).exists()), None)
    if found is None:
        raise UserError(f"{directory} has no weights: none of {', '.join(WEIGHT_FILES)} is there; {DOWNLOAD}")
    if found.suffix == ".json":
        return _open_indexed(found, harmless)
    return {tensor.name: tensor for tensor in open_shard(found)}


def open_shard(path: Path) -> list[SourceTensor]:
    """The tensors of one file. A link is followed, as the cache of the Hugging Face hub is made of links."""
    if not path.exists():
        raise UserError(f"{path} is missing; {DOWNLOAD}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; {DOWNLOAD}")
    return open_torch_file(path) if path.suffix == ".bin" else open_safetensors(path)


def indexed_shards(index: Path) -> list[str]:
    """Names of the files that an index speaks of, all of them plain names of files beside it.

    Raises:
        UserError: it is no index.
    """
    return sorted(set(_weight_map(index).values()))


def _open_indexed(index: Path, harmless: Callable[[str], bool]) -> dict[str, SourceTensor]:
    listed = _weight_map(index)
    tensors: dict[str, SourceTensor] = {}
    for shard in sorted(set(listed.values())):
        for tensor in open_shard(index.parent / shard):
            if tensor.name in tensors:
                raise UserError(f"{tensor.name} is in both {tensors[tensor.name].shard.name} and {shard}; {DOWNLOAD}")
            if tensor.name not in listed and not harmless(tensor.name):
                raise UserError(f"{shard} holds {tensor.name}, of which {index.name} does not know; {DOWNLOAD}")
            tensors[tensor.name] = tensor
    for name, shard in listed.items():
        if name not in tensors or tensors[name].shard.name != shard:
            raise UserError(f"{index.name} says that {name} is in {shard}, and it is not; {DOWNLOAD}")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    entries: Any = read_json_object(index, INDEX_LIMIT).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{index} has no weight_map; {DOWNLOAD}")
    suffix = ".bin" if ".bin." in index.name else ".safetensors"
    for name, shard in entries.items():
        if not isinstance(shard, str) or not PLAIN_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise UserError(
                f"{index} says that {name:.200} is in {shard!r:.200}, which is no {suffix} file of the same folder"
            )
    return dict(entries)
