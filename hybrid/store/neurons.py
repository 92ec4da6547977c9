"""Files of the store as tensors. Mapped, they are views of the page cache, shared between processes and never copied.

The kernel's default read-ahead is kept for neuron rows: records are many pages long, and advising random access would
turn every fault into one 4 KiB read. A file can also be held: read into memory of its own when the model is opened.
"""

from __future__ import annotations

import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from hybrid.store.layout import Entry, FileLayout
from hybrid.store.rows import Ids, damaged, is_permutation, open_checked
from profiler.artifacts import UserError
from profiler.formats import vector_bytes
from profiler.matrix import Matrix

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "U8": torch.uint8,
}


class StoredFile:
    """A file of the store in memory, uint8 `[layout.size]`, which lives as long as a tensor of it does."""

    def __init__(self, path: Path, layout: FileLayout, content: torch.Tensor) -> None:
        self.path, self.layout, self._bytes = path, layout, content

    def tensor(self, name: str) -> torch.Tensor:
        """A view of one tensor. It must not be written to: mapped pages are read-only."""
        entry: Entry = self.layout.entry(name)
        return self._bytes[entry.offset : entry.end].view(DTYPES[entry.code]).view(entry.shape)


class HeldFile(StoredFile):
    """A file read into ordinary memory; nothing is read of it later."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        with open_checked(path, layout) as file:
            content = torch.empty(layout.size, dtype=torch.uint8)
            rest = memoryview(content.numpy().data)
            try:
                while rest and (taken := os.preadv(file.fileno(), [rest], layout.size - len(rest))):
                    rest = rest[taken:]
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
        if rest:
            raise UserError(f"{path} ended before its time; was it changed while it was read?")
        super().__init__(path, layout, content)


class MappedFile(StoredFile):
    """A file mapped read-only: used where it lies, and read when it is used."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        with open_checked(path, layout) as file:
            self._map = mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            content = torch.frombuffer(self._map, dtype=torch.uint8)
        super().__init__(path, layout, content)

    @property
    def address(self) -> int:
        """Where the mapping begins."""
        return self._bytes.data_ptr()

    @property
    def length(self) -> int:
        """Bytes of the mapping."""
        return self.layout.size

    def advise(self, start: int) -> None:
        """Ask the kernel to read all of the file from a byte on soon."""
        self._map.madvise(mmap.MADV_WILLNEED, start - start % mmap.PAGESIZE)

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was cut or grown under the mapping: touching its lost pages is a signal.

        Raises:
            UserError: the file's size has changed.
        """
        if self._map.size() != self.length:
            raise UserError(f"{self.path} was changed while it was in use; pack again: hybrid pack CHECKPOINT DIR")


class WatchedFile:
    """A file that another reader of it has mapped; see `MappedFile.check_unchanged`. `mend` is the command to name."""

    def __init__(self, path: Path, mend: str) -> None:
        self.path, self.mend = path, mend
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        self._size = self._length()

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was cut or grown.

        Raises:
            UserError: the file's size has changed.
        """
        if self._length() != self._size:
            raise UserError(f"{self.path} was changed while it was in use; make it anew with: {self.mend}")

    def close(self) -> None:
        """Look no longer."""
        self._file.close()

    def _length(self) -> int:
        return os.fstat(self._file.fileno()).st_size


@dataclass(frozen=True)
class LayerRows:
    """The FFN of one layer: row r is all of neuron `neuron_ids[r]`.

    rows: `[n, stride]` in elements: 16-bit floats, or bytes where the weight format is quantised. In each, the
    vectors of `parts` in order, `hidden` weights each, then padding. neuron_ids: int32 `[n]`. bias: fp32 `[n]` by row,
    or None.
    """

    rows: torch.Tensor
    weight_format: str
    neuron_ids: Ids
    bias: torch.Tensor | None
    parts: tuple[str, ...]
    hidden: int

    def part(self, name: str) -> Matrix:
        """View `[n, hidden]` of `gate`, `up` or `down`; its rows are a stride apart."""
        width = vector_bytes(self.weight_format, self.hidden) // self.rows.element_size()
        first = self.parts.index(name) * width
        return Matrix(self.rows[:, first : first + width], self.weight_format, self.hidden)


def layer_rows(file: StoredFile, weight_format: str, parts: tuple[str, ...], hidden: int) -> LayerRows:
    """The rows of a neuron file.

    Raises:
        UserError: its ids are no permutation.
    """
    rows = file.tensor("rows")
    ids: Ids = file.tensor("neuron_ids").numpy().copy()
    if not is_permutation(ids, rows.shape[0]):
        raise damaged(file.path)
    has_bias = any(entry.name == "bias" for entry in file.layout.entries)
    return LayerRows(rows, weight_format, ids, file.tensor("bias") if has_bias else None, parts, hidden)
