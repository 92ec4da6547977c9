"""Tensors of GGUF files, streamed: floats as they are, quantised ones as ggml's blocks that can be widened or kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from hybrid.checkpoint.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from hybrid.checkpoint.tensors import FLOATS, FileTensor, SourceTensor
from profiler.artifacts import UserError

# Types whose blocks the store can hold bit for bit.
BLOCK_FORMATS = {GGMLQuantizationType.Q8_0: "q8_0", GGMLQuantizationType.Q4_0: "q4_0"}
SHARD_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
SHARDS_LIMIT = 1 << 10


@dataclass(frozen=True)
class QuantisedTensor(FileTensor):
    """Rows of ggml's blocks, uint8; the values are fp32. `code` is ggml's name of the type."""

    kind: GGMLQuantizationType

    @property
    def dtype(self) -> torch.dtype:
        """fp32, which holds what the blocks mean; refuses a type that the package gguf cannot widen."""
        if not _can_be_widened(self.kind):
            raise UserError(
                f"{self.name} in {self.shard.name} is stored as {self.code}, which cannot be read; convert the "
                "checkpoint to f16, q8_0 or a K-quant"
            )
        return torch.float32

    @property
    def stored_dtype(self) -> torch.dtype:
        """Bytes."""
        return torch.uint8

    @property
    def stored_row(self) -> tuple[int, ...]:
        """The last dimension in bytes."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return (*self.shape[1:-1], self.shape[-1] // block * size)

    @property
    def block_format(self) -> str | None:
        """See `SourceTensor.block_format`."""
        return BLOCK_FORMATS.get(self.kind) if len(self.shape) == 2 else None

    def widened(self, block: torch.Tensor) -> torch.Tensor:
        """What the blocks mean, by the package gguf."""
        with np.errstate(all="ignore"):  # a damaged scale may be infinite, which is refused by name elsewhere
            return torch.from_numpy(dequantize(block.numpy(), self.kind))


@cache
def _can_be_widened(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def open_gguf_shards(path: Path) -> tuple[GgufHeader, dict[str, SourceTensor]]:
    """The header of a file, and every tensor by its name there; of a split model, of all its files.

    Raises:
        UserError: damaged, not the first of several files, or one of them is missing or of another model.
    """
    first = read_gguf_header(path)
    tensors: dict[str, SourceTensor] = {}
    for shard in _shards(first):
        header = first if shard == path else _read_shard(shard, first)
        for info in header.tensors:
            if info.name in tensors:
                raise UserError(f"{info.name} is in both {tensors[info.name].shard.name} and {shard.name}")
            tensors[info.name] = _source(info, shard)
    told = first.metadata.get("split.tensors.count", len(tensors))
    if told != len(tensors):
        raise UserError(f"{path} tells of {told!r} tensors in all its files, and they hold {len(tensors)}")
    return first, tensors


def _shards(first: GgufHeader) -> list[Path]:
    path, count, number = first.path, first.metadata.get("split.count", 1), first.metadata.get("split.no", 0)
    if type(count) is not int or type(number) is not int or not 0 <= number < max(count, 1) <= SHARDS_LIMIT:
        raise UserError(f"{path} says that it is file {number!r} of {count!r}; download it again")
    if count <= 1:
        return [path]
    named = SHARD_NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count or int(named[2]) != number + 1:
        raise UserError(
            f"{path} is file {number + 1} of {count} of a split model, which are found by their names: "
            f"call it NAME-{number + 1:05}-of-{count:05}.gguf"
        )
    names = [path.with_name(f"{named[1]}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1)]
    if number:
        raise UserError(f"{path} is file {number + 1} of {count}; give the first one: {names[0]}")
    missing = [shard.name for shard in names if not shard.is_file()]
    if missing:
        raise UserError(f"{path} is the first of {count} files, and beside it there is no {', '.join(missing[:3])}")
    return names


def _read_shard(shard: Path, first: GgufHeader) -> GgufHeader:
    header = read_gguf_header(shard)
    named = SHARD_NAME.fullmatch(shard.name)
    assert named is not None
    told = header.metadata.get("split.no"), header.metadata.get("split.count")
    if told != (int(named[2]) - 1, int(named[3])):
        raise UserError(f"{shard} says that it is another file of a split model than its name says; download it again")
    return header


def _source(info: TensorInfo, shard: Path) -> SourceTensor:
    if info.kind.name in FLOATS:
        return FileTensor(info.name, shard, info.kind.name, info.shape, info.offset)
    return QuantisedTensor(info.name, shard, info.kind.name, info.shape, info.offset, info.kind)
