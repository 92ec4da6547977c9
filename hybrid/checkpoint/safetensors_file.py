"""Reads tensors out of a safetensors file of others: the header is checked whole before anything is read or allocated.

The values are read, not mapped, so that memory in use stays small and a file that shrinks gives an error, not a signal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoint.tensors import FLOATS, FileTensor, SourceTensor
from profiler.artifacts import UserError, format_size

HEADER_LIMIT = 16 << 20  # ten times the header of the deepest model that a spec allows
DIMENSIONS_LIMIT = 8


def open_safetensors(path: Path) -> list[SourceTensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: not a safetensors file, truncated, or with tensors that overlap or leave holes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise UserError(f"{path} is not a safetensors file, or is truncated; download it again")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    tensors = sorted(_parse(path, text, 8 + length), key=lambda t: (t.offset, t.end))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise UserError(f"{path} is damaged: {tensor.source.name} overlaps a tensor or follows a hole")
        end = tensor.end
    if end != size:
        raise UserError(
            f"{path} is {'truncated' if size < end else 'damaged'}: its header tells of {end} bytes "
            f"({format_size(end)}) and it has {size} ({format_size(size)}); download it again"
        )
    return [tensor.source for tensor in tensors]


@dataclass(frozen=True)
class _Extent:
    source: FileTensor
    end: int

    @property
    def offset(self) -> int:
        return self.source.offset


def _parse(path: Path, text: bytes, data: int) -> Iterator[_Extent]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is not a JSON object")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _parse_entry(path, name, entry, data)


def _parse_entry(path: Path, name: str, entry: Any, data: int) -> _Extent:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: the header's entry of {name} is not understood") from error
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in numbers)
    if not (isinstance(code, str) and whole and len(shape) <= DIMENSIONS_LIMIT and begin <= end):
        raise UserError(f"{path} is damaged: the header's entry of {name} has impossible numbers")
    if code in FLOATS and end - begin != math.prod(shape) * FLOATS[code].itemsize:
        raise UserError(f"{path} is damaged: {name} has {end - begin} bytes, not what {code} {shape} needs")
    return _Extent(FileTensor(name, path, code, tuple(shape), data + begin), data + end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key occurs twice")
    return keys
