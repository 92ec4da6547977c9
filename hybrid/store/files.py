"""A model directory as files, without torch: manifest, row orders, names of what later stages add, verification."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hybrid.checkpoint.kept import TOKENIZER_FILES
from hybrid.names import ADDED, MANIFEST
from hybrid.spec import ModelSpec
from hybrid.store.layout import FileLayout
from hybrid.store.manifest import DENSE_FILE, MEND, Manifest, layer_file
from hybrid.store.rows import Ids, LayerFile, damaged, open_checked, reorder_layer
from profiler.artifacts import UserError, sha256_file

Progress = Callable[[int, int], None]


class ModelFiles:
    """A model directory whose manifest has been read and whose files are there with the sizes that it states."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @staticmethod
    def open_files(path: Path) -> ModelFiles:
        """Open a directory that `hybrid pack` made.

        Raises:
            UserError: it is not one, or is damaged; the message says what to do.
        """
        return ModelFiles(path, read_manifest(path))

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.manifest.spec

    @property
    def weight_format(self) -> str:
        """`bf16`, `f16`, `q8_0` or `q4_0`."""
        return self.manifest.weight_format

    @property
    def stride_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.manifest.stride_bytes

    @property
    def source_digest(self) -> str:
        """Digest of the checkpoint's weights, whatever they are packed as."""
        return self.manifest.source_digest

    @property
    def pack_digest(self) -> str:
        """Digest of the packed model, whatever the order of its rows."""
        return self.manifest.pack_digest

    @property
    def weight_bytes(self) -> int:
        """Bytes of the files of weights, all of them."""
        return sum(layout.size for layout in self.manifest.layouts.values())

    @property
    def tokenizer_files(self) -> list[str]:
        """Names of the files kept from the checkpoint."""
        return [name for name in TOKENIZER_FILES if name in self.manifest.files]

    def neuron_ids(self, layer: int) -> Ids:
        """int32 `[n]`: the neuron of each row of a layer.

        Raises:
            UserError: the layer's file is damaged.
        """
        with LayerFile(self.path / layer_file(layer), self._layer_layout) as file:
            return file.neuron_ids()

    def row_orders(self) -> Ids:
        """int32 `[layers, n]`: the neuron of each row of every layer; see `neuron_ids`."""
        return np.stack([self.neuron_ids(layer) for layer in range(self.spec.n_layers)])

    def row_order_digest(self) -> str:
        """Digest of the order of the rows of all layers as it is now."""
        return row_order_digest(self.row_orders())

    def reorder_layer(self, layer: int, new_ids: Ids) -> None:
        """Rewrite a layer so that its row r holds neuron `new_ids[r]`; see `hybrid.store.rows.reorder_layer`.

        The caller holds the directory's lock. What is mapped stays as it was until the directory is opened again.
        """
        reorder_layer(self.path / layer_file(layer), self._layer_layout, new_ids)

    def profile_path(self, name: str) -> Path:
        """Where the profile of that name is, or would be."""
        return self._added("profiles", name)

    def predictors_path(self, name: str) -> Path:
        """Where the predictors of that name are, or would be."""
        return self._added("predictors", name)

    def plan_path(self, name: str) -> Path:
        """Where the plan of that name is, or would be."""
        return self._added("plans", name)

    def evaluation_path(self, name: str) -> Path:
        """Where the evaluation of that name is, or would be."""
        return self._added("evaluations", name)

    def thresholds_path(self, name: str) -> Path:
        """Where the thresholds of that name are, or would be."""
        return self._added("thresholds", name)

    def has_profile(self, name: str) -> bool:
        """Whether there is a profile of that name."""
        return self.profile_path(name).is_file()

    def has_predictors(self, name: str) -> bool:
        """Whether there are predictors of that name."""
        return self.predictors_path(name).is_file()

    def has_plan(self, name: str) -> bool:
        """Whether there is a plan of that name."""
        return self.plan_path(name).is_file()

    def added_names(self, folder: str) -> list[str]:
        """Names of what is in one of the folders of `ADDED`."""
        found = (self.path / folder).glob(f"*{ADDED[folder]}")
        return sorted(p.name.removesuffix(ADDED[folder]) for p in found if not p.name.startswith("."))

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte that pack wrote and compare digests; `progress(done, total)` in bytes.

        Raises:
            UserError: a file is damaged: names it.
        """
        done, total = 0, sum(record.size for record in self.manifest.files.values())

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        for name, record in self.manifest.files.items():
            layout = self.manifest.layouts.get(name)
            if layout is not None:
                open_checked(self.path / name, layout).close()
            if layout is None or name == DENSE_FILE:
                found = sha256_file(self.path / name, on_bytes)
            else:
                with LayerFile(self.path / name, layout) as file:
                    found = file.digest(on_bytes)
            if found != record.sha256:
                raise damaged(self.path / name)
        if progress:
            progress(total, total)

    @property
    def _layer_layout(self) -> FileLayout:
        return self.manifest.layouts[layer_file(0)]

    def _added(self, folder: str, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise UserError(f"{name!r} is no name for one of the {folder}; use letters, digits, dots and dashes")
        return self.path / folder / f"{name}{ADDED[folder]}"


def row_order_digest(row_orders: Ids) -> str:
    """Digest of the order of the rows of all layers, int32 `[layers, n]`: what a plan's segments refer to."""
    return hashlib.sha256(row_orders.astype("<i4").data).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a model directory whose files are all there with their sizes.

    Raises:
        UserError: not a model directory, or a file is missing or has another size.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; make a model directory with: {MEND}")
    if not (path / MANIFEST).exists():
        if (path / "config.json").exists():
            raise UserError(f"{path} is a checkpoint, not yet a model directory; pack it: hybrid pack {path} DIR")
        raise UserError(f"{path} is not a model directory of hybrid (it has no {MANIFEST}); make one with: {MEND}")
    manifest = Manifest.read(path)
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing; pack again: {MEND}")
        if file.stat().st_size != record.size:
            raise damaged(file)
    return manifest
