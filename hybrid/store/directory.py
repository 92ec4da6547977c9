"""`ModelDirectory`: a packed model opened for computing. Files are mapped when first asked for, and read in place.

With `hold` they are read into memory instead, part by part as these are asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hybrid.checkpoint.names import dense_shapes
from hybrid.store.files import ModelFiles, read_manifest
from hybrid.store.layout import matrix_format
from hybrid.store.manifest import DENSE_FILE, Manifest, layer_file
from hybrid.store.neurons import LayerRows, layer_rows
from hybrid.store.rows import Ids
from hybrid.store.stored import HeldFile, MappedFile, StoredFile, WatchedFile
from profiler.matrix import Matrix


class ModelDirectory(ModelFiles):
    """A model directory and its mappings. A context manager; tensors handed out stay valid after `close`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        self._files: dict[str, StoredFile] = {}
        self._watched: list[WatchedFile] = []
        self._layers: dict[int, LayerRows] = {}
        self._shapes = dense_shapes(manifest.spec)

    @staticmethod
    def open(path: Path) -> ModelDirectory:
        """Open a directory that `hybrid pack` made: reads the manifest and the sizes of all files.

        Raises:
            UserError: it is not one, or is damaged; the message says what to do.
        """
        return ModelDirectory(path, read_manifest(path))

    def __enter__(self) -> ModelDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the files; the memory of each goes with the last tensor that views it."""
        self._layers.clear()
        self._files.clear()
        for file in self._watched:
            file.close()
        self._watched.clear()

    def hold(self) -> None:
        """Have weights in ordinary memory, read when they are asked for, instead of mapping their files.

        Raises:
            UserError: a file is missing, or is damaged.
        """
        assert not self._files, "what is open stays open"
        for name, layout in self.manifest.layouts.items():
            self._files[name] = HeldFile(self.path / name, layout)

    def gather(self) -> None:
        """Have what is mapped of all files read and found in large pieces: for a model that fits in memory."""
        for file in self._files.values():
            if isinstance(file, MappedFile):
                file.gather()

    def scatter(self) -> None:
        """Have neurons read alone when they are touched: what is needed is asked for, and neighbours are not."""
        for name, file in self._files.items():
            if name != DENSE_FILE and isinstance(file, MappedFile):
                file.scatter()

    def watch(self, path: Path, mend: str) -> None:
        """Let `check_unchanged` look at a file too that was mapped elsewhere; `mend` is the command that remakes it."""
        self._watched.append(WatchedFile(path, mend))

    def dense(self, name: str, *, keep: bool = True) -> torch.Tensor:
        """View of a dense vector, fp32 `[n]`: a norm's weights, or biases. Not to be written to.

        keep: see `StoredFile.tensor`; for those that are copied elsewhere and read then.

        Raises:
            KeyError: the model has no such vector (see `hybrid.checkpoint.names`).
            UserError: the file is damaged.
        """
        if len(self._shapes[name]) != 1:
            raise KeyError(f"{name} is a matrix")
        return self.dense_file.tensor(name, keep=keep)

    def matrix(self, name: str, *, keep: bool = True) -> Matrix:
        """View of a dense matrix, in the weight format; learned positions are always 16 bit. Not to be written to.

        keep: as of `dense`.

        Raises:
            KeyError: the model has no such matrix (see `hybrid.checkpoint.names`).
            UserError: the file is damaged.
        """
        shape = self._shapes[name]
        if len(shape) != 2:
            raise KeyError(f"{name} is a vector")
        return Matrix(self.dense_file.tensor(name, keep=keep), matrix_format(name, self.weight_format), shape[1])

    def layer(self, index: int, *, keep: bool = True) -> LayerRows:
        """The neuron rows of a layer.

        keep: as of `dense`.

        Raises:
            UserError: the file is damaged.
        """
        if index not in self._layers:
            name = layer_file(index)
            file = self._files.get(name) or self._map(name)
            self._layers[index] = layer_rows(file, self.weight_format, self.spec.row_parts, self.spec.hidden_size)
        if keep:
            self._layers[index].keep()
        return self._layers[index]

    def neuron_ids(self, layer: int) -> Ids:
        """int32 `[n]`: the neuron of each row, of the file that was opened even if it was replaced since."""
        return self._layers[layer].neuron_ids if layer in self._layers else super().neuron_ids(layer)

    def mappings(self) -> list[tuple[int, int, str]]:
        """(address, length, path) of every file mapped so far."""
        return [(file.address, file.length, str(file.path)) for file in self._mapped()]

    def check_unchanged(self) -> None:
        """Refuse to go on where a mapped file was cut or grown.

        Raises:
            UserError: names the file.
        """
        opened: list[MappedFile | WatchedFile] = [*self._mapped(), *self._watched]
        for file in opened:
            file.check_unchanged()

    def _mapped(self) -> list[MappedFile]:
        return [file for file in self._files.values() if isinstance(file, MappedFile)]

    @property
    def dense_file(self) -> StoredFile:
        """The file of all that is not a neuron.

        Raises:
            UserError: it is damaged.
        """
        if DENSE_FILE not in self._files:
            # Every token reads all of it but embeddings that are only looked up, so the read may as well begin now.
            file = self._map(DENSE_FILE)
            file.advise(0 if self.spec.tied_embeddings else file.layout.entry("embed.weight").end)
        return self._files[DENSE_FILE]

    def _map(self, name: str) -> MappedFile:
        file = MappedFile(self.path / name, self.manifest.layouts[name])
        self._files[name] = file
        return file
