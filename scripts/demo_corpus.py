"""The corpus of the demo model: the source text of Python's standard library, split by file.

    python scripts/demo_corpus.py hybrid/demo

Owns which files belong (PSF-licensed only), the split into four disjoint parts and the record of what was read.
`train` is what the model sees in training. The others it never sees: `profile` is for counting activations and training
predictors, `calibrate` for choosing thresholds by what they cost, `heldout` for every quality figure that is reported.
Those three are written as JSONL, a file of the library per line. By itself the script writes them again beside a
checkpoint whose `training.json` names the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from profiler.artifacts import write_atomic

# Not source text that anybody wrote: character tables, generated help, fixtures with broken encodings.
GENERATED = re.compile(
    r"(^|/)(encodings/(cp|mac|iso8859|koi8|tis|ptcp|hp_)\w*|pydoc_data/topics|stringprep|html/entities"
    r"|_sysconfigdata\w*|config-[^/]*/.*)\.py$"
)
FIXTURES = re.compile(r"(^|/)(site-packages|ensurepip/_bundled|lib2to3/tests/data|test/\w*data|__pycache__)/")
COPYRIGHT = re.compile(rb"copyright[^\n]*(19|20)\d\d|SPDX-FileCopyrightText", re.IGNORECASE)
PSF = re.compile(rb"Python Software Foundation|Licensed to PSF", re.IGNORECASE)

HELDOUT_BYTES = 200_000
PROFILE_BYTES = 640_000  # of which a fifth is set aside to calibrate
CALIBRATE_BYTES = 128_000
UNSEEN = ("heldout", "profile", "calibrate")


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
    """Four disjoint parts by the hash of the path: `heldout`, then `profile`, the rest to `train`.

    `calibrate` is then taken from `profile`, by the same hash. The unseen parts take ordinary modules of ordinary size
    only: one giant test file would otherwise be most of a part, and its figure a figure about that file.
    """
    parts: dict[str, list[SourceFile]] = {"heldout": [], "profile": [], "train": []}
    left = {"heldout": HELDOUT_BYTES, "profile": PROFILE_BYTES}
    for file in sorted(files, key=lambda f: hashlib.sha256(f.path.encode()).digest()):
        ordinary = "test" not in file.path and 2_000 <= len(file.text) <= 40_000
        part = next((p for p in left if ordinary and len(file.text) <= left[p]), "train")
        if part != "train":
            left[part] -= len(file.text)
        parts[part].append(file)
    room, profile = CALIBRATE_BYTES, parts.pop("profile")
    parts |= {"profile": [], "calibrate": []}
    for file in profile:
        part = "calibrate" if len(file.text) <= room else "profile"
        room -= len(file.text) if part == "calibrate" else 0
        parts[part].append(file)
    return {name: sorted(part, key=lambda f: f.path) for name, part in parts.items()}


def write_texts(parts: dict[str, list[SourceFile]], out: Path) -> dict[str, str]:
    """Write the unseen parts into a folder as JSONL, a file per line; the sha256 of each by its name."""
    digests = {}
    for part in UNSEEN:
        lines = [json.dumps({"path": f.path, "text": f.text}, ensure_ascii=False) + "\n" for f in parts[part]]
        data = "".join(lines).encode()
        write_atomic(out / f"{part}.jsonl", data)
        digests[f"{part}.jsonl"] = hashlib.sha256(data).hexdigest()
    return digests


def library_root() -> Path:
    """Where the running interpreter keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def main() -> None:
    """Write the texts beside a checkpoint, and say so in its `training.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the folder of a checkpoint that train_demo_model.py wrote")
    args = parser.parse_args()
    record = args.checkpoint / "training.json"
    training = json.loads(record.read_text())
    parts = split_library(read_library(library_root()))
    found = {f.path: f.sha256 for files in parts.values() for f in files}
    recorded = {path: digest for files in training["files"].values() for path, digest in files.items()}
    if found != recorded:
        raise SystemExit(f"this Python's library is not the one of {record}, Python {training['python']}: use that one")
    training["texts"] = write_texts(parts, args.checkpoint)
    training["files"] = {part: {f.path: f.sha256 for f in files} for part, files in parts.items()}
    record.write_text(json.dumps(training, indent=1) + "\n")


if __name__ == "__main__":
    main()
