"""Reads tensors out of a `pytorch_model.bin` of others: tensors only, never code, and mapped, never loaded whole."""

from __future__ import annotations

import ctypes
import mmap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hybrid.checkpoint.tensors import FLOATS, SourceTensor
from profiler.artifacts import UserError

PICKLE_LIMIT = 64 << 20  # the part of the file that names the tensors; hundreds of kilobytes for the largest models
CODES = {dtype: code for code, dtype in FLOATS.items()}
RESAVE = "save it anew with transformers: model.save_pretrained(FOLDER, safe_serialization=True)"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class TorchTensor(SourceTensor):
    """A tensor of a `.bin` file, mapped."""

    values: torch.Tensor

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `SourceTensor.blocks`."""
        stop = self.shape[0] if stop is None else stop
        for first in range(start, stop, rows):
            block = self.values[first : min(first + rows, stop)]
            yield block.clone(memory_format=torch.contiguous_format)
            if block.is_contiguous():
                _drop_pages(block)


def open_torch_file(path: Path, mend: str = RESAVE) -> list[SourceTensor]:
    """The tensors of a file written by `torch.save`; `mend` says what to do about a file that cannot be read.

    Raises:
        UserError: not such a file, written in the format before torch 1.6, or holding anything but tensors.
    """
    content = _load(path, mend)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name; {mend}")
    return [_source(path, name, value, mend) for name, value in content.items()]


def open_torch_tensor(path: Path, mend: str) -> torch.Tensor:
    """The tensor, mapped, of a file in which `torch.save` wrote nothing but one. Raises as `open_torch_file`."""
    return _ordinary(path, "content", _load(path, mend), mend)


def _load(path: Path, mend: str) -> object:
    _check_archive(path, mend)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can raise anything
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"{path} is damaged or holds more than tensors ({''.join(reason)}); {mend}") from error


def _source(path: Path, name: object, value: object, mend: str) -> SourceTensor:
    tensor = _ordinary(path, name, value, mend)
    code = CODES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return TorchTensor(str(name), path, code, tuple(tensor.shape), tensor)


def _ordinary(path: Path, name: object, value: object, mend: str) -> torch.Tensor:
    """A tensor with strides whose values are all in the file, and no more of them than the file has bytes for."""
    ordinary = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not ordinary:
        raise UserError(f"{path} holds {name!r}, which is not an ordinary tensor; {mend}")
    if value.nbytes > path.stat().st_size:
        raise UserError(f"{path} is damaged: its {name!r} would have {value.nbytes} bytes, more than the file; {mend}")
    return value.detach()


def _check_archive(path: Path, mend: str) -> None:
    """Only an archive whose entries are stored plainly can be mapped, and cannot grow when it is read."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is not a file; {mend}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is truncated, or older than torch 1.6; download it again, or {mend}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(f"{path} is compressed, which torch never writes; {mend}")
        if entry.filename.endswith(".pkl") and entry.file_size > PICKLE_LIMIT:
            raise UserError(f"{path} is damaged: its list of tensors has {entry.file_size} bytes")


def _drop_pages(block: torch.Tensor) -> None:
    """Give back the mapped pages that lie wholly inside a block: they would count as memory in use until the end."""
    start = -(-block.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (block.data_ptr() + block.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        _libc.madvise(start, end - start, mmap.MADV_DONTNEED)
