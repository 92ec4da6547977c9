"""`model.json`, the manifest of a model directory: what it says, and the checks of all that it says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hybrid.checkpoint.kept import TOKENIZER_FILES, TOKENIZER_LIMIT
from hybrid.names import MANIFEST
from hybrid.spec import ModelSpec
from hybrid.store.layout import ALIGNMENT, PAGE, WEIGHT_CODES, FileLayout, dense_layout, layer_layout, least_stride
from profiler.artifacts import UserError, digest_json, read_json, write_json

KIND, VERSION = "model", 1
MEND = "hybrid pack CHECKPOINT DIR"
DENSE_FILE = "dense.safetensors"


def layer_file(index: int) -> str:
    """Name of a layer's neuron file inside the directory."""
    return f"neurons/{index:02d}.safetensors"


@dataclass(frozen=True)
class FileRecord:
    """One file: its bytes, and its sha256; for a neuron file the digest over its rows by neuron id."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 0:
            raise UserError(f"a file cannot have {self.size!r} bytes")
        check_digest(self.sha256)


@dataclass(frozen=True)
class Manifest:
    """What a model directory holds.

    stride_bytes: from one row to the next. source_digest: of the checkpoint's weights, whatever they are packed as.
    pack_digest: of all that pack wrote, whatever the order of the rows.
    """

    spec: ModelSpec
    weight_format: str
    stride_bytes: int
    files: dict[str, FileRecord]
    source_digest: str
    pack_digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.weight_format, str) or self.weight_format not in WEIGHT_CODES:
            raise UserError(f"weight format {self.weight_format!r} is not known; known are {', '.join(WEIGHT_CODES)}")
        least, stride = least_stride(self.spec, self.weight_format), self.stride_bytes
        whole = isinstance(stride, int) and not isinstance(stride, bool)
        if not whole or stride % ALIGNMENT or not least <= stride < least + PAGE:
            raise UserError(f"a row stride of {stride!r} bytes does not fit records of {least}")
        check_digest(self.source_digest)
        check_digest(self.pack_digest)
        for name, layout in self.layouts.items():
            if name not in self.files or self.files[name].size != layout.size:
                raise UserError(f"{name} should be listed with {layout.size} bytes")
        for name in set(self.files) - set(self.layouts):
            if name not in TOKENIZER_FILES:
                raise UserError(f"{name!r} is no file of a model directory")
            if self.files[name].size > TOKENIZER_LIMIT:
                raise UserError(f"{name} cannot have {self.files[name].size} bytes")

    @cached_property
    def layouts(self) -> dict[str, FileLayout]:
        """Layout of each weight file, by its name."""
        layer = layer_layout(self.spec, self.weight_format, self.stride_bytes)
        layers = {layer_file(i): layer for i in range(self.spec.n_layers)}
        return {DENSE_FILE: dense_layout(self.spec, self.weight_format), **layers}

    @staticmethod
    def create(
        spec: ModelSpec, weight_format: str, stride_bytes: int, files: dict[str, FileRecord], source_digest: str
    ) -> Manifest:
        """The manifest of files that were just written."""
        draft = Manifest(spec, weight_format, stride_bytes, files, source_digest, pack_digest=source_digest)
        return replace(draft, pack_digest=digest_json(draft._body()))

    def write(self, directory: Path) -> None:
        """Write `model.json`, the last file of a directory that makes the others valid."""
        write_json(directory / MANIFEST, KIND, VERSION, {**self._body(), "pack_digest": self.pack_digest})

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Read `model.json`; every statement in it is checked, and the files are not looked at.

        Raises:
            UserError: it is missing, of another version, or damaged.
        """
        path = directory / MANIFEST
        body = read_json(path, KIND, VERSION, MEND, limit=16 << 20)
        try:
            digested = {k: v for k, v in body.items() if k not in ("kind", "format_version", "pack_digest")}
            if digest_json(digested) != body["pack_digest"]:
                raise UserError("its digest is not its own")
            manifest = Manifest(
                spec=ModelSpec.from_json(body["spec"]),
                weight_format=body["weight_format"],
                stride_bytes=body["row"]["stride_bytes"],
                files={name: _record(entry) for name, entry in body["files"].items()},
                source_digest=body["source_digest"],
                pack_digest=body["pack_digest"],
            )
            if body["row"]["parts"] != list(manifest.spec.row_parts):
                raise UserError("its rows have other parts than the model's neurons")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}); pack again: {MEND}") from error
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}; pack again: {MEND}") from error
        return manifest

    def _body(self) -> dict[str, Any]:
        layers = set(self.layouts) - {DENSE_FILE}
        return {
            "spec": self.spec.to_json(),
            "weight_format": self.weight_format,
            "row": {"parts": list(self.spec.row_parts), "stride_bytes": self.stride_bytes},
            "files": {
                name: {"size": record.size, "rows_sha256" if name in layers else "sha256": record.sha256}
                for name, record in self.files.items()
            },
            "source_digest": self.source_digest,
        }


def _record(entry: Any) -> FileRecord:
    return FileRecord(entry["size"], entry["rows_sha256"] if "rows_sha256" in entry else entry["sha256"])


def check_digest(text: object) -> None:
    """Refuse what is not a sha256 in lower-case hexadecimal."""
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise UserError(f"{str(text)[:80]!r} is not a sha256")
