"""`hybrid pack`: a checkpoint becomes a model directory, in one pass over its weights and in little memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hybrid.checkpoint.reader import Checkpoint
from hybrid.names import ADDED
from hybrid.runtime.memory import process_memory
from hybrid.stages.pack_files import TOKENIZERS, kept_files, origin_of
from hybrid.stages.pack_notes import rounding_notes, stored_weights
from hybrid.store.formats import VECTORS, choose_format, convert
from hybrid.store.layout import PADDING, dense_layout, layer_layout, least_stride, matrix_format
from hybrid.store.manifest import DENSE_FILE, FileRecord, Manifest, layer_file
from hybrid.store.origin import Origin
from hybrid.store.rows import BLOCK_BYTES, write_layer
from hybrid.store.writer import Array, StreamingWriter
from profiler.artifacts import (
    DISK_FULL,
    UserError,
    atomic_directory,
    atomic_writer,
    explain_os_errors,
    require_free_space,
    sha256_file,
    write_atomic,
)
from profiler.formats import is_quantised, vector_bytes
from profiler.matrix import SIXTEEN_BIT

# Hidden units transposed at a time: their columns of a row block stay in the processor's cache.
STRIP = 64
PURPOSE = "pack"
MARGIN = 1 << 20  # manifest, folders, the file system's own


@dataclass(frozen=True)
class PackReport:
    """What `pack` made. bytes: of all files. peak_memory: bytes of this process at its largest, so far."""

    destination: Path
    weight_format: str
    files: int
    bytes: int
    parameters: int
    seconds: float
    peak_memory: int
    source_digest: str
    pack_digest: str
    notes: tuple[str, ...]


def pack(
    source: Path,
    destination: Path,
    weight_format: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    activation: str | None = None,
    tokenizer: Path | None = None,
    name: str | None = None,
) -> PackReport:
    """Pack the checkpoint `source`, a folder or a GGUF file, into the model directory `destination`, which appears when
    it is complete.

    weight_format: `bf16`, `f16`, `q8_0`, `q4_0`, or `auto`, which keeps a 16-bit type, q8_0 and q4_0 (see
    `choose_format`). `progress(done, total)` is told the bytes written. activation: see `Checkpoint.open`.
    tokenizer: a folder whose tokenizer files are taken instead of the checkpoint's own. name: of a source that was
    downloaded, for `origin.json`.

    Raises:
        UserError: the checkpoint cannot be packed, the destination cannot be written, or another pack is writing it.
    """
    destination = destination.resolve()
    check_places(source.resolve(), destination)
    # Not resolved: the hub's cache is made of links, and files of a split model are found by their names.
    checkpoint = Checkpoint.open(source.absolute(), activation, with_tokenizer=tokenizer is None)
    origin = origin_of(checkpoint, activation, tokenizer, name)
    return pack_checkpoint(checkpoint, destination, weight_format, progress, tokenizer, origin)


def pack_checkpoint(
    checkpoint: Checkpoint,
    destination: Path,
    weight_format: str,
    progress: Callable[[int, int], None] | None = None,
    tokenizer: Path | None = None,
    origin: Origin | None = None,
) -> PackReport:
    """`pack` of a checkpoint that is open, wherever its tensors come from; a whole `destination` path is expected."""
    started = time.monotonic()
    kept = kept_files(checkpoint, tokenizer)
    packer = _Packer(checkpoint, choose_format(weight_format, stored_weights(checkpoint)), kept, progress)
    try:
        with atomic_directory(destination, PURPOSE) as (partial, had_remains):
            require_free_space(destination.parent, packer.total, PURPOSE)
            if origin is not None:
                origin.write(partial)
            manifest = packer.write(partial)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK_FULL:
            require_free_space(destination.parent, packer.total, PURPOSE)
        raise
    notes = [*checkpoint.notes, *rounding_notes(checkpoint, packer.weight_format)]
    if had_remains:
        notes.insert(0, f"removed {partial}, left by a run that was killed")
    if not TOKENIZERS & set(manifest.files):
        notes.append(
            f"{checkpoint.path} has no tokenizer (tokenizer.model, tokenizer.json or vocab.json): "
            "the model will need one"
        )
    return PackReport(
        destination=destination,
        weight_format=manifest.weight_format,
        files=len(manifest.files),
        bytes=sum(record.size for record in manifest.files.values()),
        parameters=checkpoint.parameters,
        seconds=time.monotonic() - started,
        peak_memory=process_memory().peak,
        source_digest=manifest.source_digest,
        pack_digest=manifest.pack_digest,
        notes=tuple(notes),
    )


def check_places(source: Path | None, destination: Path) -> None:
    """Refuse to write into the checkpoint, around it, or where there is no folder to write in.

    Raises:
        UserError: says which of these it is.
    """
    inside = source is not None and (source in destination.parents or destination in source.parents)
    if source == destination or inside:
        raise UserError(f"{destination} and the checkpoint {source} lie one inside the other; choose another folder")
    if not destination.parent.is_dir():
        raise UserError(f"{destination.parent} is not a folder; make it first: mkdir -p {destination.parent}")


class _Packer:
    """Writes the files of one model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weight_format: str,
        kept: dict[str, Path | bytes],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.checkpoint, self.spec, self.weight_format = checkpoint, checkpoint.spec, weight_format
        self.stride = least_stride(self.spec, weight_format)
        self.dense = dense_layout(self.spec, weight_format)
        self.layer = layer_layout(self.spec, weight_format, self.stride)
        self.kept = kept
        weights = self.dense.size + self.spec.n_layers * self.layer.size
        self.total = weights + sum(map(_size, self.kept.values())) + MARGIN
        self._progress, self._weights, self._done = progress, weights, 0

    def write(self, directory: Path) -> Manifest:
        """All files, the manifest last."""
        with explain_os_errors(PURPOSE, directory):
            for folder in ("neurons", *ADDED):
                (directory / folder).mkdir()
        files = {DENSE_FILE: self._write_dense(directory / DENSE_FILE)}
        for index in range(self.spec.n_layers):
            files[layer_file(index)] = self._write_layer(directory / layer_file(index), index)
        for name, kept in self.kept.items():
            write_atomic(directory / name, kept if isinstance(kept, bytes) else kept.read_bytes())
            files[name] = FileRecord((directory / name).stat().st_size, sha256_file(directory / name))
        digest = self.checkpoint.source_digest()
        manifest = Manifest.create(self.spec, self.weight_format, self.stride, files, digest)
        manifest.write(directory)
        return manifest

    def _write_dense(self, path: Path) -> FileRecord:
        digest = hashlib.sha256()

        def show(data: memoryview) -> None:
            digest.update(data)
            self._on_bytes(len(data))

        with atomic_writer(path) as file:
            writer = StreamingWriter(file, self.dense, show)
            for entry in self.dense.entries:
                if entry.name.startswith(PADDING):
                    continue
                stored = matrix_format(entry.name, self.weight_format) if len(entry.shape) > 1 else VECTORS
                for block in self._converted(entry.name, stored):
                    writer.write(entry.name, as_bytes(block))
            writer.finish()
        return FileRecord(self.dense.size, digest.hexdigest())

    def _write_layer(self, path: Path, index: int) -> FileRecord:
        bias = None
        if self.spec.ffn_bias:
            bias = torch.cat([b.clone() for b in self._converted(f"layers.{index}.up.bias", VECTORS)]).numpy()
        ids = np.arange(self.spec.n_neurons, dtype=np.int32)
        with atomic_writer(path) as file:
            digest = write_layer(file, self.layer, self._records(index), ids, bias, self._on_bytes)
        return FileRecord(self.layer.size, digest)

    def _records(self, index: int) -> Iterator[Array]:
        """Blocks of a layer's records, uint8 `[k, stride]`, in the order of the checkpoint."""
        width, parts = vector_bytes(self.weight_format, self.spec.hidden_size), self.spec.row_parts
        down_name = f"layers.{index}.down.weight"
        down = self._transposed(down_name)
        rows = max(1, BLOCK_BYTES // least_stride(self.spec, "bf16"))  # what blocks are made from is 16 bit or more
        block = torch.zeros(rows, self.stride, dtype=torch.uint8)
        streams = [self._converted(f"layers.{index}.{part}.weight", self.weight_format, rows) for part in parts[:-1]]
        start = 0
        for pieces in zip(*streams, strict=True):
            taken = len(pieces[0])
            last = convert(down[start : start + taken], self.weight_format, self._source_name(down_name))
            for k, piece in enumerate((*pieces, last)):
                block[:taken, k * width : (k + 1) * width] = piece.view(torch.uint8)
            yield as_bytes(block[:taken])
            start += taken

    def _transposed(self, name: str) -> torch.Tensor:
        """`[neurons, hidden]` of the down matrix, which checkpoints store as `[hidden, neurons]`.

        In the weight format if that is a float's, else in what the blocks are made from.
        """
        turned: torch.Tensor | None = None
        at = 0
        for block in self._down_blocks(name):
            if turned is None:
                turned = torch.empty(self.spec.n_neurons, self.spec.hidden_size, dtype=block.dtype)
            for strip in torch.split(block, STRIP):
                turned[:, at : at + len(strip)] = strip.T
                at += len(strip)
        assert turned is not None
        return turned

    def _down_blocks(self, name: str) -> Iterator[torch.Tensor]:
        if not is_quantised(self.weight_format):
            return self._converted(name, self.weight_format)
        source = self.checkpoint.tensors[name].dtype
        return self.checkpoint.blocks(name) if source in SIXTEEN_BIT.values() else self._converted(name, VECTORS)

    def _converted(self, name: str, stored_format: str, rows: int | None = None) -> Iterator[torch.Tensor]:
        if self.checkpoint.tensors[name].block_format == stored_format:
            yield from self.checkpoint.blocks_kept(name, rows)
            return
        for block in self.checkpoint.blocks(name, rows):
            yield convert(block, stored_format, self._source_name(name))

    def _source_name(self, name: str) -> str:
        return self.checkpoint.tensors[name].name

    def _on_bytes(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._weights)


def _size(kept: Path | bytes) -> int:
    return len(kept) if isinstance(kept, bytes) else kept.stat().st_size


def as_bytes(block: torch.Tensor) -> Array:
    """The bytes of a contiguous tensor, uint8."""
    return block.view(torch.uint8).numpy()
