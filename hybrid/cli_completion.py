"""What a shell completes: models, and what is in the one that a command line names. It only looks at names of files."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from hybrid.cache import cache_directory
from hybrid.names import ADDED, DEMO, MANIFEST

MOST_LOOKED_AT = 4096  # entries of a folder, between two keys of somebody's


def complete_model(incomplete: str) -> list[str]:
    """`demo`, and model directories; where there are none the shell completes files itself."""
    folder, _, begun = incomplete.rpartition("/")
    before = f"{folder}/" if "/" in incomplete else ""
    found = [DEMO] if DEMO.startswith(incomplete) else []
    for name in _names(Path(before or ".").expanduser()):
        if name.startswith(begun) and Path(before or ".", name, MANIFEST).expanduser().is_file():
            found.append(f"./{name}" if before + name == DEMO else before + name)
    return found


def complete_added(folder: str) -> Callable[[typer.Context, str], list[str]]:
    """A completion of what a model directory has in a folder, by name."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        # Of a command line that ends in an option without its value, arguments are found but not yet assigned.
        model = context.params.get("model") or next(iter(context.args), None)
        files = itertools.chain.from_iterable(_names(path / folder) for path in _models(model))
        suffix = ADDED[folder]
        names = {name.removesuffix(suffix) for name in files if name.endswith(suffix) and not name.startswith(".")}
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def _models(model: object) -> Iterable[Path]:
    """The directories that a model may be."""
    if model == DEMO:
        return cache_directory().glob(f"{DEMO}-*")
    return [Path(str(model)).expanduser()] if model else []


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in itertools.islice(entries, MOST_LOOKED_AT))
    return []
