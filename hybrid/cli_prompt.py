"""Where `run` has its prompt from: the command line, stdin or a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from hybrid import display
from hybrid.exits import UsageError
from profiler.artifacts import UserError, format_size

STDIN = "-"
MOST_BYTES = 64 << 20  # of a prompt; the longest contexts take a few megabytes


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt that is given, or is read from a file; `-` is stdin. One line end at the end of what is read is
    dropped: `echo` and editors add it.

    Raises:
        UsageError: none or several are given.
        UserError: it cannot be read, or is no UTF-8 text.
    """
    if (prompt is None) == (file is None):
        raise UsageError("give a PROMPT (- reads it from stdin), or --prompt-file FILE: one of both")
    if file is None and prompt != STDIN:
        assert prompt is not None
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that are no text
            raise UserError("the prompt is not UTF-8 text") from error
        return prompt
    if file is None or str(file) == STDIN:
        if sys.stdin is None:
            raise UserError("cannot read the prompt: stdin is closed")
        if sys.stdin.isatty():
            display.note("reading the prompt from the terminal; Ctrl-D ends it")
        return _text(sys.stdin.buffer, "stdin")
    try:
        with file.open("rb") as opened:
            return _text(opened, str(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _text(file: BinaryIO, name: str) -> str:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{name} is no prompt: it has more than {format_size(MOST_BYTES)}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text") from error
    return text.removesuffix("\n").removesuffix("\r")
