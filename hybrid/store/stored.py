"""Files of the store in memory. Mapped, they are views of the page cache, shared between processes and never copied.

The kernel's default read-ahead is kept for neuron rows: records are many pages long, and advising random access would
turn every fault into one 4 KiB read. A file can also be held: read into memory of its own when the model is opened.

What is copied elsewhere is read past the mapping, and its pages are given back: neither the process nor the page cache
keeps what lies in a GPU's memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from hybrid.store.layout import ALIGNMENT, Entry, FileLayout
from hybrid.store.rows import open_checked
from profiler.artifacts import UserError

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "U8": torch.uint8,
}


class StoredFile:
    """A file of the store in memory, uint8 `[layout.size]`, which lives as long as a tensor of it does."""

    def __init__(self, path: Path, layout: FileLayout, file: BinaryIO, content: torch.Tensor) -> None:
        self.path, self.layout, self._bytes = path, layout, content
        self._forgotten: list[range] = []
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def tensor(self, name: str, *, keep: bool = True) -> torch.Tensor:
        """A view of one tensor. It must not be written to: mapped pages are read-only.

        keep: its values are there; without, of a held file, only the place for them: see `Origin.keep`.

        Raises:
            UserError: it is to be read and cannot be.
        """
        entry: Entry = self.layout.entry(name)
        if keep:
            self.keep(entry.offset, entry.nbytes)
        return self._bytes[entry.offset : entry.end].view(DTYPES[entry.code]).view(entry.shape)

    def origin(self, tensor: torch.Tensor) -> Origin:
        """Where in the file the bytes of a contiguous view of it lie."""
        offset = tensor.data_ptr() - self._bytes.data_ptr()
        assert tensor.is_contiguous() and 0 <= offset <= self.layout.size - tensor.nbytes, "a view of this file"
        return Origin(self, offset, tensor.nbytes)

    def keep(self, offset: int, length: int) -> None:
        """Have a part of the file in memory from now on.

        Raises:
            UserError: it is to be read and cannot be.
        """

    def read(self, offset: int, into: torch.Tensor) -> None:
        """Fill uint8 `[n]` in host memory with the file's bytes from `offset` on, without touching pages of a mapping.

        Raises:
            UserError: they cannot be read.
        """
        rest = memoryview(into.numpy().data)
        try:
            while rest and (taken := os.preadv(self._descriptor, [rest], offset + into.numel() - len(rest))):
                rest = rest[taken:]
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        if rest:
            raise UserError(f"{self.path} ended before its time; was it changed while it was read?")

    def forget(self, offset: int, length: int) -> None:
        """Give back the whole pages of a part of the file: those of the page cache that no process has mapped.

        The kernel drops what it keeps together (up to 2 MiB) only as a whole, so that parts which lie side by side are
        given back as one.
        """
        self._forgotten, whole = joined(self._forgotten, range(offset, offset + length))
        if pages := whole_pages(whole.start, len(whole)):
            self._drop(pages)

    def _drop(self, pages: range) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, pages.start, len(pages), os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, eq=False)
class Origin:
    """A part of a file of the store: the bytes of a tensor, one after the other."""

    file: StoredFile
    offset: int
    length: int

    def keep(self) -> None:
        """See `StoredFile.keep`."""
        self.file.keep(self.offset, self.length)

    def read(self, start: int, into: torch.Tensor) -> None:
        """See `StoredFile.read`; `start` is relative to the part."""
        self.file.read(self.offset + start, into)

    def forget(self, stop: int) -> None:
        """See `StoredFile.forget`: all up to `stop`, relative to the part."""
        self.file.forget(self.offset, stop)


class HeldFile(StoredFile):
    """A file read into ordinary memory, each part when it is first kept. The others take no memory."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        with open_checked(path, layout) as file:
            room = mmap.mmap(-1, layout.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            super().__init__(path, layout, file, torch.frombuffer(room, dtype=torch.uint8))
        self._kept: list[range] = []

    def keep(self, offset: int, length: int) -> None:
        """See `StoredFile`; with what is between the part and one beside it."""
        self._kept, whole = joined(before := self._kept, range(offset, offset + length))
        at = whole.start
        for part in (*(p for p in before if whole.start <= p.start < whole.stop), range(whole.stop, whole.stop)):
            super().read(at, self._bytes[at : part.start])
            at = part.stop

    def read(self, offset: int, into: torch.Tensor) -> None:
        """See `StoredFile`: from memory, where it was kept already."""
        stop = offset + into.numel()
        if any(part.start <= offset and stop <= part.stop for part in self._kept):
            into.copy_(self._bytes[offset:stop])
        else:
            super().read(offset, into)


class MappedFile(StoredFile):
    """A file mapped read-only: used where it lies, and read when it is used."""

    def __init__(self, path: Path, layout: FileLayout) -> None:
        with open_checked(path, layout) as file:
            self._map = mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                content = torch.frombuffer(self._map, dtype=torch.uint8)
            super().__init__(path, layout, file, content)

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

    def gather(self) -> None:
        """Have the kernel read and map 2 MiB together, where its file system can: rows that lie anywhere are then found
        without a walk through page tables that no cache holds. A file of which parts were given back is left as it is.
        """
        if not self._forgotten and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def scatter(self) -> None:
        """Have the kernel read a page that is touched, and none of its neighbours."""
        self._map.madvise(mmap.MADV_RANDOM)

    def _drop(self, pages: range) -> None:
        """The pages of the mapping too, which are read again if they are touched: first, as what is mapped stays."""
        self._map.madvise(mmap.MADV_DONTNEED, pages.start, len(pages))
        super()._drop(pages)

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


def joined(parts: list[range], part: range) -> tuple[list[range], range]:
    """Parts that are apart and in rising order, once another is joined with those that it touches; and what that made.

    Parts touch where no more than padding is between them.
    """
    near = [p for p in parts if p.start <= part.stop + ALIGNMENT and part.start <= p.stop + ALIGNMENT]
    whole = range(min(p.start for p in (part, *near)), max(p.stop for p in (part, *near)))
    return sorted([*(p for p in parts if p not in near), whole], key=lambda p: p.start), whole


def whole_pages(offset: int, length: int) -> range:
    """The bytes of the pages that lie within a part from end to end: others hold what belongs to its neighbours."""
    page = mmap.PAGESIZE
    return range(-(-offset // page) * page, (offset + length) // page * page)
