"""The corpus of the demo model: the source text of Python's standard library, split by file.

Owns which files belong (PSF-licensed only), the split into three disjoint parts and the record of what was read.
`train` is what the model sees in training; `profile` and `heldout` it never sees: the first is for counting
activations and training predictors, the second for every quality figure that is reported.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Not source text that anybody wrote: character tables, generated help, fixtures with broken encodings.
GENERATED = re.compile(
    r"(^|/)(encodings/(cp|mac|iso8859|koi8|tis|ptcp|hp_)\w*|pydoc_data/topics|stringprep|html/entities"
    r"|_sysconfigdata\w*|config-[^/]*/.*)\.py$"
)
FIXTURES = re.compile(r"(^|/)(site-packages|ensurepip/_bundled|lib2to3/tests/data|test/\w*data|__pycache__)/")
COPYRIGHT = re.compile(rb"copyright[^\n]*(19|20)\d\d|SPDX-FileCopyrightText", re.IGNORECASE)
PSF = re.compile(rb"Python Software Foundation|Licensed to PSF", re.IGNORECASE)

HELDOUT_BYTES = 200_000
PROFILE_BYTES = 640_000


@dataclass(frozen=True)
class SourceFile:
    """One file of the library: its path below the library's root, its text and the sha256 of its bytes."""

    path: str
    text: str
    sha256: str


def third_party(data: bytes) -> bool:
    """Whether the file claims a copyright that is not the PSF's, nor licensed to it by a contributor agreement."""
    return bool(COPYRIGHT.search(data)) and not PSF.search(data)


def read_library(root: Path) -> list[SourceFile]:
    """All PSF-licensed, hand-written, UTF-8 sources below `root`, sorted by path."""
    files = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if GENERATED.search(name) or FIXTURES.search(name):
            continue
        data = path.read_bytes()
        if len(data) < 200 or third_party(data):
            continue
        try:
            text = data.decode("utf-8").replace("\r\n", "\n").expandtabs(8)
        except UnicodeDecodeError:
            continue
        files.append(SourceFile(name, text, hashlib.sha256(data).hexdigest()))
    return files


def split_library(files: list[SourceFile]) -> dict[str, list[SourceFile]]:
    """Three disjoint parts by the hash of the path: `heldout`, then `profile`, and the rest to `train`.

    The two unseen parts take ordinary modules of ordinary size only: one giant test file would otherwise be most of
    a part, and its figure a figure about that file.
    """
    parts: dict[str, list[SourceFile]] = {"heldout": [], "profile": [], "train": []}
    left = {"heldout": HELDOUT_BYTES, "profile": PROFILE_BYTES}
    for file in sorted(files, key=lambda f: hashlib.sha256(f.path.encode()).digest()):
        ordinary = "test" not in file.path and 2_000 <= len(file.text) <= 40_000
        part = next((p for p in left if ordinary and len(file.text) <= left[p]), "train")
        if part != "train":
            left[part] -= len(file.text)
        parts[part].append(file)
    return {name: sorted(part, key=lambda f: f.path) for name, part in parts.items()}


def library_root() -> Path:
    """Where the running interpreter keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])
