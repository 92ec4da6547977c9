"""How fast a model starts: its files used in place against read into memory (`--no-mmap`), in turn, in one run.

    python scripts/bench_start.py DIR [--rounds 5] [--json FILE]

Every figure is of a fresh process, timed once all is imported: the seconds until the model is open, and until it has
given the first token after a prompt of one. The page cache holds the model, except in the rounds named cold, for which
it is told to forget it; they are left out where it does not. Medians over rounds; a ratio is the median of the ratios
of each round. What a second process adds is the PSS of two that have the model open, less that of the first alone: of
all of their memory, and of the model's files only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure_sharing import Reader, reader
from rich.console import Console
from rich.table import Table

from hybrid.stages.finding import find_outlines
from hybrid.stages.opening import resolve
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, format_size, write_atomic

COLD = 0.02  # more of the files in the page cache than this is not cold
MODES = ("predicted", "exact", "dense")
LABELS = {
    "mmap": "in place",
    "no_mmap": "read",
    "mmap_cold": "in place, cold",
    "no_mmap_cold": "read, cold",
}
RATIOS = {"ratio": "ratio", "ratio_cold": "ratio, cold"}
Figures = dict[str, Any]


def weight_files(path: Path) -> list[Path]:
    """The files of weights, and the predictors where there are any."""
    with ModelDirectory.open(path) as directory:
        files = [path / name for name in directory.manifest.layouts]
        predictors = directory.predictors_path("default")
        return [*files, predictors] if find_outlines(directory, "default") is not None else files


def available_modes(path: Path, wanted: Sequence[str]) -> list[str]:
    """The modes asked for that the model offers."""
    with ModelDirectory.open(path) as directory:
        offered = {"predicted": directory.has_predictors("default"), "exact": directory.spec.has_exact_zeros}
    return [mode for mode in wanted if offered.get(mode, True)]


def warm(files: Sequence[Path]) -> None:
    """Have the page cache hold all of the files."""
    block = bytearray(16 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def forget(files: Sequence[Path]) -> float:
    """Ask the page cache to forget files; the share of their pages that it holds then."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    held = [cached_pages(path) for path in files]
    return sum(cached for cached, _ in held) / sum(pages for _, pages in held)


def cached_pages(path: Path) -> tuple[int, int]:
    """Pages of a file in the page cache, and all of its pages."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    found = torch.zeros(pages, dtype=torch.uint8)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapping:
        view = torch.frombuffer(mapping, dtype=torch.uint8)
        arguments = map(ctypes.c_void_p, (view.data_ptr(), size, found.data_ptr()))
        if ctypes.CDLL(None, use_errno=True).mincore(*arguments):
            raise OSError(ctypes.get_errno(), "mincore")
        del view
    return int((found & 1).sum()), pages


def start(path: Path, mode: str, in_place: bool) -> Figures:
    """Seconds and memory of one fresh process."""
    with reader(path, mode, in_place) as process:
        memory = process.memory()
        return {
            "open_seconds": process.open_seconds,
            "first_token_seconds": process.first_token_seconds,
            "peak_rss": memory.peak,
            "pss": memory.proportional or 0,
        }


def sharing(path: Path, mode: str) -> dict[str, int]:
    """Bytes that a second process adds to the first, of all memory and of the model's files."""

    def together(processes: Sequence[Reader]) -> tuple[int, int]:
        return sum(p.memory().proportional or 0 for p in processes), sum(p.mapped()[1] for p in processes)

    with reader(path, mode) as first:
        alone = together([first])
        with reader(path, mode) as second:
            both = together([first, second])
    return {"added": both[0] - alone[0], "added_of_files": both[1] - alone[1]}


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def ratios(mapped: Sequence[Figures], read: Sequence[Figures]) -> dict[str, float]:
    """How many times longer it takes when the model is read into memory."""
    names = ("open_seconds", "first_token_seconds")
    pairs = list(zip(mapped, read, strict=True))
    return {name: statistics.median(slow[name] / fast[name] for fast, slow in pairs) for name in names}


def measure(path: Path, modes: Sequence[str], rounds: int, cold_rounds: int) -> Figures:
    """All figures of a model, by mode; see the head of this file."""
    files = weight_files(path)
    result: Figures = {"model": str(path), "bytes": sum(file.stat().st_size for file in files), "modes": {}}
    for mode in modes:
        runs: dict[str, list[Figures]] = {"mmap": [], "no_mmap": [], "mmap_cold": [], "no_mmap_cold": []}
        for _ in range(rounds):
            for name in ("mmap", "no_mmap"):
                warm(files)
                runs[name].append(start(path, mode, name == "mmap"))
        for _ in range(cold_rounds):
            for name in ("mmap", "no_mmap"):
                if forget(files) <= COLD:
                    runs[f"{name}_cold"].append(start(path, mode, name == "mmap"))
        warm(files)
        figures: Figures = {name: medians(done) for name, done in runs.items() if done}
        figures["ratio"] = ratios(runs["mmap"], runs["no_mmap"])
        if cold_rounds and all(len(runs[name]) == cold_rounds for name in ("mmap_cold", "no_mmap_cold")):
            figures["ratio_cold"] = ratios(runs["mmap_cold"], runs["no_mmap_cold"])
        figures["second_process"] = sharing(path, mode)
        result["modes"][mode] = {**figures, "rounds": runs}
    return result


def show(result: Figures) -> None:
    """The figures as a table, and a line about sharing for each mode."""
    console, size = Console(), result["bytes"]
    table = Table("mode", "files", "open, s", "first token, s", "peak RSS", "PSS")
    for mode, figures in result["modes"].items():
        for name, label in LABELS.items():
            if (f := figures.get(name)) is not None:
                seconds = (f"{f['open_seconds']:.3f}", f"{f['first_token_seconds']:.3f}")
                table.add_row(mode, label, *seconds, format_size(f["peak_rss"]), format_size(f["pss"]))
        for name, label in RATIOS.items():
            if (f := figures.get(name)) is not None:
                table.add_row(mode, label, f"{f['open_seconds']:.1f}", f"{f['first_token_seconds']:.1f}")
    console.print(table)
    for mode, figures in result["modes"].items():
        added = figures["second_process"]
        console.print(
            f"{mode}: a second process adds {format_size(added['added'])}, {added['added'] / size:.1%} of the model's "
            f"{format_size(size)}; of its files {format_size(added['added_of_files'])}",
            soft_wrap=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory, or demo")
    parser.add_argument("--modes", default="predicted,exact", help=f"of {', '.join(MODES)}, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=1, help="rounds with an empty page cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    args = parser.parse_args()
    modes = args.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if args.rounds < 1 or args.cold_rounds < 0:
        parser.error("at least one round is measured")
    try:
        path = resolve(args.model).resolve()
        result = measure(path, available_modes(path, modes), args.rounds, args.cold_rounds)
    except UserError as error:
        raise SystemExit(f"bench_start: {error}") from error
    show(result)
    if args.json is not None:
        write_atomic(args.json, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
