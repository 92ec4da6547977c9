"""The header of a GGUF file: metadata and where each tensor lies, every count and size checked before it is believed.

The `gguf` package maps a file and trusts it; here it is read, and nothing is allocated that the file has no bytes for.
The format is described in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from profiler.artifacts import UserError, format_size

MAGIC, POWERINFER_MAGIC = b"GGUF", b"PWRI"
VERSIONS = (2, 3)  # 3 added big-endian files; 1 had 32-bit counts, and was written for some weeks of 2023
HEADER_LIMIT = 128 << 20  # what tokenizers of others may take; a quarter of a million tokens and merges take 15 MiB
ENTRIES_LIMIT = 1 << 16  # keys, or tensors: 1024 layers have about 10 000
ELEMENTS_LIMIT = 1 << 22  # of an array; no vocabulary is larger
NAME_LIMIT = 1 << 10
DIMENSIONS_LIMIT = 4
ALIGNMENT, ALIGNMENT_LIMIT = 32, 1 << 20
SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: `shape` outermost first, as torch has it; `offset` bytes from the beginning of the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the file that it takes."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class GgufHeader:
    """metadata: whole numbers, floats, truths, texts as bytes (they need not be UTF-8), and lists of one of these."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a file.

    Raises:
        UserError: no GGUF file, of another version or byte order, truncated, or with numbers that cannot be.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


class _Reader:
    """Takes one value after the other from the beginning of a file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size
        self._left = min(self._size, HEADER_LIMIT)

    def header(self) -> GgufHeader:
        magic = self._bytes(4) if self._size >= 4 else b""
        if magic == POWERINFER_MAGIC:
            raise UserError(
                f"{self._path} is of PowerInfer's own kind of GGUF, with predictors inside; pack the Hugging Face "
                "checkpoint that it was made from, and give its predictors to hybrid import-predictors"
            )
        if magic != MAGIC:
            raise UserError(f"{self._path} is not a GGUF file; give one, or the folder of a checkpoint")
        version = self._number("<I")
        if version not in VERSIONS:
            order = " in big-endian order" if version.to_bytes(4, "little")[:3] == b"\0\0\0" and version else ""
            raise UserError(
                f"{self._path} is GGUF of version {version if not order else version >> 24}{order}; "
                "little-endian versions 2 and 3 can be read: convert the checkpoint anew"
            )
        tensors, keys = self._count("tensors", ENTRIES_LIMIT), self._count("keys", ENTRIES_LIMIT)
        metadata = self._metadata(keys)
        infos = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not (type(alignment) is int and 0 < alignment <= ALIGNMENT_LIMIT and alignment & (alignment - 1) == 0):
            raise self._damaged(f"an alignment of {alignment!r} is no power of two up to {ALIGNMENT_LIMIT}")
        begin = -(-self._file.tell() // alignment) * alignment
        return GgufHeader(self._path, metadata, self._placed(infos, begin, alignment))

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("a key")
            if key in metadata:
                raise self._damaged(f"it says {key} twice")
            metadata[key] = self._value(self._kind(key), key)
        return metadata

    def _value(self, kind: GGUFValueType, key: str) -> Any:
        if kind is GGUFValueType.STRING:
            return self._text()
        if kind is GGUFValueType.BOOL:
            return self._truth(self._number("<B"), key)
        if kind is not GGUFValueType.ARRAY:
            return self._number(SCALARS[kind])
        kind, count = self._kind(key), self._count(key, ELEMENTS_LIMIT)
        if kind is GGUFValueType.ARRAY:
            raise self._damaged(f"{key} is a list of lists, which no key of a language model is")
        if kind is GGUFValueType.STRING:
            return [self._text() for _ in range(count)]
        if kind is GGUFValueType.BOOL:
            return [self._truth(value, key) for value in self._bytes(count)]
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

    def _tensor(self) -> TensorInfo:
        """Its offset is from the beginning of the data here."""
        name, dimensions = self._name("a tensor"), self._number("<I")
        if not 1 <= dimensions <= DIMENSIONS_LIMIT:
            raise self._damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        code, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError as error:
            raise UserError(
                f"{self._path}: {name} is stored as type {code}, which the package gguf does not know; "
                "convert the checkpoint to f16, q8_0 or a K-quant"
            ) from error
        if not all(1 <= size < 1 << 40 for size in shape) or math.prod(shape) >= 1 << 50 or offset >= 1 << 60:
            raise self._damaged(f"{name} has impossible sizes: {list(shape)} at {offset}")
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise self._damaged(f"rows of {shape[-1]} in {name} are not whole blocks of {kind.name}")
        return TensorInfo(name, kind, shape, offset)

    def _placed(self, infos: list[TensorInfo], begin: int, alignment: int) -> tuple[TensorInfo, ...]:
        """The tensors with offsets from the beginning of the file, none of which overlap or are beyond its end."""
        placed = [TensorInfo(i.name, i.kind, i.shape, begin + i.offset) for i in infos]
        if len({info.name for info in placed}) != len(placed):
            raise self._damaged("two tensors have the same name")
        end = begin
        for info in sorted(placed, key=lambda i: i.offset):
            if info.offset < end or info.offset % alignment:
                raise self._damaged(f"{info.name} overlaps another tensor, or is not aligned to {alignment} bytes")
            end = info.offset + info.nbytes
        if infos and end > self._size:
            raise UserError(
                f"{self._path} is truncated: its header tells of {end} bytes ({format_size(end)}) and it has "
                f"{self._size} ({format_size(self._size)}); download it again"
            )
        return tuple(placed)

    def _kind(self, key: str) -> GGUFValueType:
        code = self._number("<I")
        try:
            return GGUFValueType(code)
        except ValueError as error:
            raise self._damaged(f"{key} is of type {code}, which there is not") from error

    def _truth(self, value: int, key: str) -> bool:
        if value > 1:
            raise self._damaged(f"{key} is {value}, and should be true or false")
        return bool(value)

    def _name(self, what: str) -> str:
        length = self._count(f"the bytes of the name of {what}", NAME_LIMIT)
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"the name of {what} is not UTF-8") from error

    def _text(self) -> bytes:
        return self._bytes(self._count("the bytes of a text", self._left))

    def _count(self, what: str, limit: int) -> int:
        count: int = self._number("<Q")
        if count > limit:
            raise self._damaged(f"it tells of {count} as {what}, more than the {limit} that can be")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise self._damaged("its header ends before its time, or is beyond all measure")
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise self._damaged("it ended while it was read")
        return data

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self._path} is damaged: {why}; download it again")
