"""Copies weights to where they are computed: chunk by chunk, leaving nothing of them in host memory.

What comes from a file is read past its mapping and forgotten as it goes, so that neither this process nor the page
cache holds what a device does, and no more than a chunk or two lies in between. To a CUDA device it goes through two
pinned buffers in turn: one is read into while the other is copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hybrid.runtime.control_groups import read
from hybrid.store.stored import whole_pages

CHUNK = 16 << 20
ALIGNMENT = 256  # bytes: what cudaMalloc gives, and more than any load needs


class Source(Protocol):
    """Where the bytes of a tensor come from, one after the other; offsets are relative to its first."""

    def keep(self) -> None:
        """Have them in memory from now on: they are used where they lie."""

    def read(self, start: int, into: torch.Tensor) -> None:
        """Fill uint8 `[n]` in host memory with those from `start` on."""

    def forget(self, stop: int) -> None:
        """Let go of what host memory has of all up to `stop`."""


class InMemory:
    """A tensor in host memory that others may hold; nothing is forgotten."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes = flat(tensor.contiguous())

    def keep(self) -> None:
        """See `Source`."""

    def read(self, start: int, into: torch.Tensor) -> None:
        """See `Source`."""
        into.copy_(self._bytes[start : start + into.numel()])

    def forget(self, stop: int) -> None:
        """See `Source`."""


class MappedTensor(InMemory):
    """A contiguous tensor that may be a view of a file which another library has mapped; else it is only `InMemory`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous(), "a copy would not be in the mapping"
        super().__init__(tensor)
        self._mapping = file_mapping(tensor.data_ptr(), tensor.nbytes)

    def forget(self, stop: int) -> None:
        """See `Source`."""
        if self._mapping is None:
            return
        address = self._bytes.data_ptr()
        if pages := whole_pages(address, stop):
            madvise = ctypes.CDLL(None).madvise
            madvise(ctypes.c_void_p(pages.start), ctypes.c_size_t(len(pages)), ctypes.c_int(mmap.MADV_DONTNEED))
        self._mapping.drop(address, stop)


@dataclass(frozen=True)
class FileMapping:
    """Memory from `begin` on that is a file's, from its byte `offset` on."""

    begin: int
    offset: int
    inode: int
    path: Path

    def drop(self, address: int, length: int) -> None:
        """Give back the page cache of what is mapped at an address, where the file is still the one at its path."""
        pages = whole_pages(self.offset + address - self.begin, length)
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            if pages and os.fstat(file.fileno()).st_ino == self.inode:
                os.posix_fadvise(file.fileno(), pages.start, len(pages), os.POSIX_FADV_DONTNEED)


def file_mapping(address: int, length: int, maps: Path = Path("/proc/self/maps")) -> FileMapping | None:
    """What file is mapped in all of a range of this process's memory; None where none is, or where no system says.

    Lines are those of proc_pid_maps(5): `begin-end permissions offset device inode path`, numbers in hexadecimal but
    the inode.
    """
    for line in read(maps).splitlines():
        fields = line.split(maxsplit=5)
        begin, _, end = fields[0].partition("-")
        if int(begin, 16) <= address and address + length <= int(end, 16):
            inode = int(fields[4])
            return FileMapping(int(begin, 16), int(fields[2], 16), inode, Path(fields[5])) if inode else None
    return None


class Arena:
    """One piece of a device's memory that tensors are cut from: an allocator then rounds up nothing but that."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._room = torch.empty(size, dtype=torch.uint8, device=device)
        self._taken = 0

    def take(self, size: int) -> torch.Tensor | None:
        """uint8 `[size]`, aligned; None where so much is not left."""
        start = -(-self._taken // ALIGNMENT) * ALIGNMENT
        if start + size > self._room.numel():
            return None
        self._taken = start + size
        return self._room[start : start + size]

    def close(self) -> None:
        """Give the memory back at once; what was cut from it must not be used any more.

        Host memory that numpy was shown goes with its owners instead.
        """
        with contextlib.suppress(RuntimeError):
            self._room.untyped_storage().resize_(0)


class Upload:
    """Copies to one device. staged: through pinned buffers, which a CUDA device needs and host memory does not.

    done: bytes copied so far, of which `told` hears after each chunk.
    """

    def __init__(self, device: torch.device, *, staged: bool | None = None) -> None:
        self.done = 0
        self.told: Callable[[int], None] = lambda done: None
        self._on_cuda = device.type == "cuda"
        self._staged = self._on_cuda if staged is None else staged
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, source: Source, to: torch.Tensor) -> None:
        """Fill a contiguous tensor of the device; it is whole once the device has done what it was given.

        Raises:
            UserError: a file cannot be read.
        """
        room = flat(to)
        for start in range(0, room.numel(), CHUNK):
            piece = room[start : start + CHUNK]
            stop = start + piece.numel()
            if self._staged:
                self._through_buffer(source, start, piece)
            else:
                source.read(start, piece)
            source.forget(stop)
            self.done += piece.numel()
            self.told(self.done)

    def close(self) -> None:
        """Wait until all is there; the buffers are let go."""
        for event in self._copied:
            if event is not None:
                event.synchronize()
        self._buffers, self._copied = [], [None, None]

    def _through_buffer(self, source: Source, start: int, piece: torch.Tensor) -> None:
        if not self._buffers:
            self._buffers = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=self._on_cuda) for _ in range(2)]
        self._turn = 1 - self._turn
        before = self._copied[self._turn]
        if before is not None:
            before.synchronize()
        buffer = self._buffers[self._turn][: piece.numel()]
        source.read(start, buffer)
        piece.copy_(buffer, non_blocking=self._on_cuda)
        if self._on_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[self._turn] = event


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 `[n]`: the bytes of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8)
