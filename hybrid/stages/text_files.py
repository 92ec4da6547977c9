"""Finds the files of a text and reads them in pieces: UTF-8 files, folders of them, and lines of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.artifacts import UserError, format_size

PIECE_BYTES = 4 << 20  # read and tokenised together
LINE_LIMIT = 64 << 20  # bytes of one line of JSON
LOOKED_AT = 8192  # first bytes of a file that tell whether it is text
JSON_LINES = (".jsonl", ".ndjson")
Note = Callable[[str], None]


@dataclass(frozen=True)
class TextFile:
    """A file with text in it: its size in bytes, and whether each line is a JSON object of its own."""

    path: Path
    size: int
    json_lines: bool


def find_files(path: Path, note: Note) -> list[TextFile]:
    """The file, or the text files of a folder and its folders by name; hidden and empty ones are left out.

    `note` is told how many files of a folder are no text.

    Raises:
        UserError: missing, empty, or binary; a folder without text; names the path.
    """
    try:
        if not path.is_dir():
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is a pipe or a device, and a text is read twice; write it to a file first")
            found = _text_file(path)
            if found is None:
                raise UserError(f"{path} is a binary file, not UTF-8 text; convert it first")
            if not found.size:
                raise UserError(f"the text {path} is empty")
            return [found]
        found_or_none = [_text_file(file) for file in sorted(_walk(path))]
    except OSError as error:
        raise UserError(f"cannot read the text {error.filename or path}: {error.strerror}") from error
    files = [file for file in found_or_none if file is not None and file.size]
    if skipped := sum(file is None for file in found_or_none):
        note(f"{path}: {skipped} of {len(found_or_none)} files are no UTF-8 text and are left out")
    if not files:
        raise UserError(f"there is no text in the folder {path}")
    return files


def read_bytes(file: TextFile) -> Iterator[bytes]:
    """The file in pieces of some MiB, cut at line breaks, or between characters where a line is longer than a piece.

    Raises:
        UserError: it cannot be read, or is longer or shorter than it was when it was found.
    """
    rest, taken = b"", 0
    try:
        with file.path.open("rb") as opened:
            while block := opened.read(PIECE_BYTES):
                taken += len(block)
                rest += block
                cut = rest.rfind(b"\n") + 1
                if not cut and len(rest) >= (LINE_LIMIT if file.json_lines else PIECE_BYTES):
                    if file.json_lines:
                        raise UserError(f"{file.path} has a line over {format_size(LINE_LIMIT)}; is it JSON lines?")
                    cut = _between_characters(rest)
                if cut:
                    yield rest[:cut]
                    rest = rest[cut:]
    except OSError as error:
        raise UserError(f"cannot read the text {file.path}: {error.strerror}") from error
    if taken != file.size:
        raise UserError(f"{file.path} was changed while it was read; wait until it is written, then try again")
    if rest:
        yield rest


def read_text(file: TextFile) -> Iterator[str]:
    """As `read_bytes`, decoded.

    Raises:
        UserError: as there, or a byte is no UTF-8, or zero: names the line.
    """
    line = 1
    for data in read_bytes(file):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise UserError(f"{file.path} is not UTF-8 text (line {line}); convert it first") from error
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise UserError(f"{file.path} is a binary file, not a text (line {line} holds a zero byte)")
        yield text
        line += data.count(b"\n")


def read_json_lines(file: TextFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of every line that is not empty.

    Raises:
        UserError: as `read_text`, or a line is no JSON object: names the line.
    """
    number = 0
    for text in read_text(file):
        for line in text.removesuffix("\n").split("\n"):
            number += 1
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file.path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(value, dict):
                raise UserError(f"{file.path}, line {number}: a JSON object is expected, with `text` or `messages`")
            yield number, value


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and (path := Path(root, name)).is_file():
                yield path


def _raise(error: OSError) -> None:
    raise error


def _text_file(path: Path) -> TextFile | None:
    """The file, of no bytes where there is nothing but blanks in it; None where its first bytes are no text."""
    with path.open("rb") as opened:
        size, first = os.fstat(opened.fileno()).st_size, opened.read(LOOKED_AT)
    if b"\0" in first:
        return None
    try:
        first[: _between_characters(first) if len(first) == LOOKED_AT else None].decode("utf-8")
    except UnicodeDecodeError:
        return None
    blank = size == len(first) and not first.strip()
    return TextFile(path, 0 if blank else size, path.suffix.lower() in JSON_LINES)


def _between_characters(data: bytes) -> int:
    """The last place in UTF-8 text that does not lie within a character."""
    for back in range(1, min(4, len(data)) + 1):
        first = data[-back]
        if first & 0xC0 != 0x80:  # the first byte of a character, which tells its length
            length = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return len(data) if back >= length else len(data) - back
    return len(data)
