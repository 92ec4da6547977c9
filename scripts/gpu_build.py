"""Make the models that a GPU is measured with: weights drawn on it, straight into model directories.

    python scripts/gpu_build.py WORK --out build.json [--models mistral-7b,llama-7b] [--device cuda]

Each model is WORK/NAME, in 16 bits, with planted profile and predictors (scripts/make_synthetic.py), and
WORK/NAME.checkpoint the same for transformers, where the disk has room for it once all directories are made. What is
there already is left as it is. A 7B model takes about 15 GB, and as much again as a checkpoint; a minute each, or what
the disk needs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from make_synthetic import device_named, parse
from peers.command import explained, tell
from synthetic.checkpoint import write_checkpoint
from synthetic.directory import write_directory
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights

from profiler.artifacts import UserError, format_size, write_atomic

MODELS = "mistral-7b,llama-7b"
SPARE = 2 << 30  # bytes of the disk that are left free
TOLD = 0.1  # of a model, after which a line is printed


def needed(weights: PlantedWeights) -> int:
    """Bytes of a model's weights in 16 bits, predictors included."""
    shape = weights.shape
    total = shape.layers * shape.predictor_rank * (shape.hidden + shape.ffn)
    for sizes in weights.names.values():
        count = 1
        for size in sizes:
            count *= size
        total += count
    return 2 * total


def progress(name: str) -> Callable[[str, int, int], None]:
    """A line for every tenth of each stage, with what is left of it, in seconds."""
    began: dict[str, float] = {}
    told: dict[str, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        began.setdefault(stage, now)
        if done / total >= told.get(stage, 0.0) + TOLD:
            told[stage] = done / total
            left = (now - began[stage]) * (total - done) / done
            tell(f"{name}: {stage} {done / total:.0%}, {left:.0f} s left")

    return note


def timed(what: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.monotonic()
    what()
    return time.monotonic() - began


def require_room(folder: Path, size: int) -> None:
    """Refuse what the disk has no room for.

    Raises:
        UserError: how much it takes, and how much is free.
    """
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise UserError(f"it takes {format_size(size)}, and {format_size(free)} of {folder} are free")


def build(folder: Path, name: str, weights: PlantedWeights) -> dict[str, Any]:
    """The model directory; what it took, or why it was not made."""
    path, size = folder / name, needed(weights)
    row: dict[str, Any] = {"model": name, "shape": asdict(weights.shape), "bytes": size, "directory": str(path)}
    if (path / "model.json").exists():
        return {**row, "seconds": None}
    try:
        require_room(folder, size)
    except UserError as error:
        return {**row, "directory": None, "reason": str(error)}
    tell(f"{name}: {format_size(size)}")
    unfinished = folder / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    seconds = timed(lambda: write_directory(unfinished, weights, "bf16", progress(name)))
    unfinished.rename(path)
    tell(f"{name}: made in {seconds:.0f} s, {size / seconds / 1e9:.2f} GB/s")
    return {**row, "seconds": seconds}


def build_checkpoint(folder: Path, name: str, weights: PlantedWeights) -> dict[str, Any]:
    """The same model as a checkpoint; as `build`."""
    path = folder / f"{name}.checkpoint"
    if path.exists():
        return {"checkpoint": str(path)}
    try:
        require_room(folder, needed(weights))
    except UserError as error:
        return {"checkpoint": None, "checkpoint_reason": str(error)}
    unfinished = folder / f"{name}.checkpoint.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    seconds = timed(lambda: write_checkpoint(unfinished, weights))
    unfinished.rename(path)
    tell(f"{name}: checkpoint made in {seconds:.0f} s")
    return {"checkpoint": str(path), "checkpoint_seconds": seconds}


def main() -> None:
    """Make what is missing, directories first; write what was made after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the models")
    parser.add_argument("--out", type=Path, required=True, help="file for what was made, and how long it took")
    parser.add_argument("--models", default=MODELS, help=f"presets of make_synthetic.py (default {MODELS})")
    parser.add_argument("--shape", help="options of make_synthetic.py, for one model named `model` instead")
    parser.add_argument("--device", default="cuda", help="where values are drawn (default cuda)")
    args = parser.parse_args()
    options = {name: ["--preset", name] for name in args.models.split(",")}
    if args.shape is not None:
        options = {"model": shlex.split(args.shape)}
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}

    def note(name: str, row: dict[str, Any]) -> None:
        rows[name] = {**rows.get(name, {}), **row}
        write_atomic(args.out, json.dumps(list(rows.values()), indent=1).encode() + b"\n")

    with explained("gpu_build", UserError, OSError):
        device = device_named(args.device)
        models: dict[str, PlantedWeights] = {}
        for name, given in options.items():
            shape: Shape = parse(["--directory", "", *given])[1]
            models[name] = PlantedWeights(shape, device, hottest_first=True)
            note(name, build(args.work, name, models[name]))
        for name, weights in models.items():
            if rows[name]["directory"] is not None:
                note(name, build_checkpoint(args.work, name, weights))
    for name, row in rows.items():
        for what in ("directory", "checkpoint"):
            if row.get(what) is None:
                tell(f"{name}: no {what}: {row.get('reason') or row.get('checkpoint_reason')}")
    if all(row["directory"] is None for row in rows.values()):
        raise SystemExit("gpu_build: no model was made")


if __name__ == "__main__":
    main()
