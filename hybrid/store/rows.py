"""Writes, reorders and checks a layer's neuron file, in blocks of rows and without torch.

The digest of a layer is taken over its neurons in the order of their ids, so it stays true when the rows are reordered.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from hybrid.store.layout import PADDING, Entry, FileLayout
from hybrid.store.writer import Array, StreamingWriter
from profiler.artifacts import UserError, atomic_writer, require_free_space

BLOCK_BYTES = 16 << 20
Ids = npt.NDArray[np.int32]
OnBytes = Callable[[int], None]


class RowDigest:
    """Digest of a layer: sha256 over the sha256 of each row, then the biases, by neuron id. Rows come in any order."""

    def __init__(self, neurons: int) -> None:
        self._rows = np.zeros((neurons, hashlib.sha256().digest_size), np.uint8)

    def update(self, ids: Ids, rows: Array) -> None:
        """Rows `[k, stride]` of the neurons `ids [k]`, whole records, padding included."""
        for neuron, row in zip(ids, rows, strict=True):
            self._rows[neuron] = np.frombuffer(hashlib.sha256(row.data).digest(), np.uint8)

    def hexdigest(self, bias: Array | None) -> str:
        """Hex digest; `bias` fp32 `[n]` by neuron id."""
        total = hashlib.sha256(self._rows.data)
        if bias is not None:
            total.update(np.ascontiguousarray(bias).data)
        return total.hexdigest()


def is_permutation(ids: Ids, neurons: int) -> bool:
    """Whether ids name each of a layer's neurons once."""
    return ids.shape == (neurons,) and np.array_equal(np.sort(ids), np.arange(neurons))


def write_layer(
    file: BinaryIO,
    layout: FileLayout,
    blocks: Iterable[Array],
    ids: Ids,
    bias: Array | None,
    on_bytes: OnBytes | None = None,
) -> str:
    """Write a neuron file from blocks of rows, uint8 `[k, stride]`; `ids` and `bias` by row. Returns its digest."""
    on_data = None if on_bytes is None else lambda data: on_bytes(len(data))
    writer, digest, row = StreamingWriter(file, layout, on_data), RowDigest(len(ids)), 0
    for block in blocks:
        writer.write("rows", block)
        digest.update(ids[row : row + len(block)], block)
        row += len(block)
    writer.write("neuron_ids", ids.astype("<i4"))
    if bias is not None:
        writer.write("bias", bias.astype("<f4"))
    writer.finish()
    return digest.hexdigest(None if bias is None else bias[np.argsort(ids)])


def reorder_layer(path: Path, layout: FileLayout, new_ids: Ids) -> None:
    """Rewrite a layer so that row r holds neuron `new_ids[r]`: atomically, in blocks.

    Who has mapped the old file keeps it. The caller holds the directory's lock.

    Raises:
        UserError: `new_ids` is no permutation, the file is damaged, or there is no room for a second copy of it.
    """
    with LayerFile(path, layout) as layer:
        if not is_permutation(new_ids, layer.neurons):
            raise UserError(f"the new row order does not name each of the layer's {layer.neurons} neurons once")
        old_ids = layer.neuron_ids()
        if np.array_equal(old_ids, new_ids):
            return
        require_free_space(path.parent, layout.size, "reordering a layer")
        row_of = np.argsort(old_ids)[new_ids]
        bias = layer.bias()
        with atomic_writer(path) as file:
            write_layer(file, layout, layer.rows(row_of), new_ids, None if bias is None else bias[row_of])


class LayerFile:
    """A neuron file opened for reading with ordinary reads. A context manager.

    Raises:
        UserError: the file is missing, or is not what the layout says.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        self.neurons, _ = layout.entry("rows").shape
        self.stride = layout.entry("rows").nbytes // self.neurons
        self._file = open_checked(path, layout)

    def __enter__(self) -> LayerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def neuron_ids(self) -> Ids:
        """int32 `[n]`: the neuron of each row, checked to be a permutation."""
        ids = self._array(self.layout.entry("neuron_ids"), "<i4").astype(np.int32)
        if not is_permutation(ids, self.neurons):
            raise damaged(self.path)
        return ids

    def bias(self) -> npt.NDArray[np.float32] | None:
        """fp32 `[n]` by row, or None."""
        if all(entry.name != "bias" for entry in self.layout.entries):
            return None
        return self._array(self.layout.entry("bias"), "<f4").astype(np.float32)

    def rows(self, order: npt.NDArray[np.intp] | None = None) -> Iterator[Array]:
        """uint8 `[k, stride]` blocks of the rows, in the file's order or in another."""
        start, count = self.layout.entry("rows").offset, max(1, BLOCK_BYTES // self.stride)
        for first in range(0, self.neurons, count):
            taken = min(count, self.neurons - first)
            block = np.empty((taken, self.stride), np.uint8)
            if order is None:
                self._read(start + first * self.stride, block)
            else:
                for row, source in zip(block, order[first : first + taken], strict=True):
                    self._read(start + int(source) * self.stride, row)
            yield block

    def digest(self, on_bytes: OnBytes | None = None) -> str:
        """The layer's digest, from all that is in the file.

        Raises:
            UserError: the ids are no permutation, or padding is not zero.
        """
        digest, ids, row = RowDigest(self.neurons), self.neuron_ids(), 0
        for block in self.rows():
            digest.update(ids[row : row + len(block)], block)
            row += len(block)
            if on_bytes:
                on_bytes(block.nbytes)
        for entry in self.layout.entries:
            if entry.name.startswith(PADDING) and self._array(entry, "u1").any():
                raise damaged(self.path)
        bias = self.bias()
        return digest.hexdigest(None if bias is None else bias[np.argsort(ids)])

    def _array(self, entry: Entry, dtype: str) -> Array:
        values = np.empty(entry.shape, dtype)
        self._read(entry.offset, values)
        return values

    def _read(self, offset: int, into: Array) -> None:
        if os.preadv(self._file.fileno(), [into.data.cast("B")], offset) != into.nbytes:
            raise UserError(f"{self.path} ended before its time; was it changed while it was read?")


def open_checked(path: Path, layout: FileLayout) -> BinaryIO:
    """Open a file of the store whose size and header are those of its layout.

    Raises:
        UserError: it is missing or another file.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is missing; pack the checkpoint again: hybrid pack CHECKPOINT DIR")
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if os.fstat(file.fileno()).st_size != layout.size or file.read(len(layout.header)) != layout.header:
        file.close()
        raise damaged(path)
    return file


def damaged(path: Path) -> UserError:
    """What is said of a file whose bytes are not those that pack wrote."""
    return UserError(f"{path} is damaged: it is not what hybrid pack wrote; pack again: hybrid pack CHECKPOINT DIR")
