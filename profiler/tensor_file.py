"""Artifacts made of arrays: safetensors files whose metadata say what they are and hold the rest as JSON.

Profiles and predictors are read through here, as numpy arrays or as torch tensors; this file itself loads no torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors

from profiler.artifacts import UserError, check_version

# Types in the safetensors format, by the names that numpy and torch have for them.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "U8": "uint8"}

# How a file that is not what it says shows while it is read.
DAMAGE = (
    OSError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
)


@dataclass(frozen=True)
class TensorOutline:
    """What a header says of a tensor. dtype: as numpy and torch name it; a type of no artifact by its code."""

    dtype: str
    shape: tuple[int, ...]


class TensorFile:
    """An artifact that is open. version: of its format. body: the JSON object beside its tensors."""

    def __init__(self, file: Any, version: int, body: dict[str, Any]) -> None:
        self._file, self.version, self.body = file, version, body

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file.keys())

    def outline(self, name: str) -> TensorOutline:
        """Type and shape of a tensor, from the header; the tensor is not read."""
        stored = self._file.get_slice(name)
        code = stored.get_dtype()
        return TensorOutline(DTYPES.get(code, code), tuple(stored.get_shape()))

    def read(self, name: str) -> Any:
        """A tensor, of the framework that the file was opened for: copied for numpy, mapped for torch."""
        return self._file.get_tensor(name)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A vector of floats, no longer than was expected.

        Raises:
            ValueError: it is of another length, or of no floats.
        """
        outline = self.outline(name)
        if outline.shape != (count,) or outline.dtype not in ("float32", "float64"):
            raise ValueError(f"{name} should be {count} numbers, not {outline.dtype} {list(outline.shape)}")
        return tuple(self.read(name).tolist())


def metadata_of(kind: str, version: int, body: dict[str, Any]) -> dict[str, str]:
    """The metadata of an artifact, for `open_tensors` to find."""
    return {"kind": kind, "format_version": str(version), kind: json.dumps(body)}


@contextlib.contextmanager
def open_tensors(
    path: Path,
    kind: str,
    version: int,
    mend: str,
    older: Collection[int] = (),
    framework: Literal["numpy", "pt"] = "numpy",
) -> Iterator[TensorFile]:
    """An artifact of `kind` in format `version`, or in one of the `older` that are read too.

    safetensors holds the sizes that the header states against the file's before anything is allocated. Whatever else is
    wrong with the file, and is found inside the block, is told as damage.

    Raises:
        UserError: missing, damaged, of another kind or version; the message names the command `mend`.
    """
    if not path.is_file():
        raise UserError(f"no {kind} at {path}; make it with: {mend}")
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("kind") != kind:
                raise UserError(f"{path} holds no {kind} of hybrid; make it with: {mend}")
            stated = metadata.get("format_version", "")
            found = check_version(path, int(stated) if stated.isdigit() else None, version, mend, older)
            yield TensorFile(file, found, json.loads(metadata[kind]))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with: {mend}") from error
