"""Writes a safetensors file in one pass, tensor by tensor and piece by piece, so that no tensor need be in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hybrid.store.layout import PADDING, Entry, FileLayout

Array = npt.NDArray[Any]
OnData = Callable[[memoryview], object]


class StreamingWriter:
    """Fills a file in the order of its layout: pieces of one tensor, then of the next. Padding is written by itself.

    `on_data` is shown every piece of the file, header and padding included, as it is written: for digests and progress.
    """

    def __init__(self, file: BinaryIO, layout: FileLayout, on_data: OnData | None = None) -> None:
        self._file, self._layout, self._on_data = file, layout, on_data
        self._at = 0
        self._put(memoryview(layout.header))

    def write(self, name: str, piece: Array) -> None:
        """The next piece of a tensor: a C-contiguous array, whose bytes are taken as they are."""
        entry = self._layout.entry(name)
        if self._at < entry.offset:
            self._pad(entry)
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        assert entry.offset <= self._at and self._at + len(data) <= entry.end, f"{name} written out of its place"
        self._put(data)

    def finish(self) -> None:
        """To be called at the end: all of the file has been written."""
        assert self._at == self._layout.size, f"{self._layout.size - self._at} bytes were never written"

    def _pad(self, entry: Entry) -> None:
        pad = next((e for e in self._layout.entries if e.offset == self._at), None)
        assert pad is not None and pad.end == entry.offset and pad.name.startswith(PADDING), (
            f"{entry.name} came too early"
        )
        self._put(memoryview(bytes(pad.nbytes)))

    def _put(self, data: memoryview) -> None:
        self._file.write(data)
        self._at += len(data)
        if self._on_data:
            self._on_data(data)
