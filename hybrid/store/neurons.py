"""Files of the store mapped in place: tensors that are views of the page cache, shared between processes, never copied.

The kernel's default read-ahead is kept for neuron rows: records are many pages long, and advising random access would
turn every fault into one 4 KiB read.
"""

from __future__ import annotations

import mmap
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


class MappedFile:
    """A file of the store, mapped read-only. The mapping lives as long as a tensor of it does."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        with open_checked(path, layout) as file:
            self._map = mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)
        self._bytes = self._view(torch.uint8, layout.size, 0)

    @property
    def address(self) -> int:
        """Where the mapping begins."""
        return self._bytes.data_ptr()

    @property
    def length(self) -> int:
        """Bytes of the mapping."""
        return self.layout.size

    def tensor(self, name: str) -> torch.Tensor:
        """A view of one tensor. It must not be written to: the pages are read-only."""
        entry: Entry = self.layout.entry(name)
        dtype = DTYPES[entry.code]
        return self._view(dtype, entry.nbytes // dtype.itemsize, entry.offset).view(entry.shape)

    def advise_whole(self) -> None:
        """Ask the kernel to read all of the file soon."""
        self._map.madvise(mmap.MADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was cut or grown under the mapping: touching its lost pages is a signal.

        Raises:
            UserError: the file's size has changed.
        """
        if self._map.size() != self.length:
            raise UserError(f"{self.path} was changed while it was in use; pack again: hybrid pack CHECKPOINT DIR")

    def _view(self, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)


@dataclass(frozen=True)
class LayerRows:
    """The FFN of one layer: row r is all of neuron `neuron_ids[r]`.

    rows: mapped, `[n, stride]` in elements: 16-bit floats, or bytes where the weight format is quantised. In each, the
    vectors of `parts` in order, `hidden` weights each, then padding. neuron_ids: int32 `[n]`. bias: fp32 `[n]` by row,
    mapped, or None.
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


def map_layer(file: MappedFile, weight_format: str, parts: tuple[str, ...], hidden: int) -> LayerRows:
    """The rows of a mapped neuron file.

    Raises:
        UserError: its ids are no permutation.
    """
    rows = file.tensor("rows")
    ids: Ids = file.tensor("neuron_ids").numpy().copy()
    if not is_permutation(ids, rows.shape[0]):
        raise damaged(file.path)
    has_bias = any(entry.name == "bias" for entry in file.layout.entries)
    return LayerRows(rows, weight_format, ids, file.tensor("bias") if has_bias else None, parts, hidden)
