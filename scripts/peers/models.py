"""The synthetic models that are compared: kept in a cache folder outside the repository, made when they are missing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthetic.directory import write_directory
from synthetic.gguf_file import write_gguf
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights

from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
# What decides the bytes of a model: a change of it makes the cached ones stale. Layouts are checked on opening.
MAKERS = ("scripts/synthetic/*.py", "profiler/blocks.py", "placement/skewed.py")


@dataclass(frozen=True)
class Pair:
    """The same model for both contenders, in one weight format."""

    directory: Path
    gguf: Path


def model_pair(cache: Path, name: str, shape: Shape, weight_format: str, tell: Callable[[str], None]) -> Pair:
    """Both forms of a model, made now if they are not there; stale ones of that name are removed."""
    key = making_key(shape)
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f"{name}.*"):
        if not old.name.startswith(f"{name}.{key}."):
            tell(f"removing {old}, made by another version")
            _remove(old)
    pair = Pair(cache / f"{name}.{key}.{weight_format}", cache / f"{name}.{key}.{weight_format}.gguf")
    weights = PlantedWeights(shape)
    if not pair.gguf.exists():
        tell(f"making {pair.gguf}")
        write_gguf(pair.gguf, weights, weight_format)
    if not is_whole(pair.directory):
        _remove(pair.directory)
        tell(f"making {pair.directory}")
        unfinished = pair.directory.with_name(f"{pair.directory.name}.unfinished")
        _remove(unfinished)
        try:
            write_directory(unfinished, weights, weight_format, lambda stage, done, total: None)
            unfinished.rename(pair.directory)
        finally:
            _remove(unfinished)
    return pair


def making_key(shape: Shape, *more_makers: Path) -> str:
    """Eight digits that change with what decides a model's bytes: its shape, and the sources that make it."""
    digest = hashlib.sha256(repr(shape).encode())
    for path in sorted([*more_makers, *(path for pattern in MAKERS for path in ROOT.glob(pattern))]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def is_whole(path: Path) -> bool:
    """Whether a model directory is there, and opens with all of its layers."""
    try:
        with ModelDirectory.open(path) as directory:
            directory.matrix("embed.weight")
            for layer in range(directory.spec.n_layers):
                directory.layer(layer)
    except UserError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
