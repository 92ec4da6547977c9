"""One file of a hub, onto the disk: goes on where an earlier run stopped, and is checked against the hub's digest."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import disable_progress_bars

from hybrid.checkpoint.hub_files import HubFile
from profiler.artifacts import CHUNK, UserError, format_size, sha256_file, sync_directory

PATIENCE = 4  # times that a connection may fail without having brought a byte
PAUSE = 1.0  # seconds
UNFINISHED = ".incomplete"
OnBytes = Callable[[int], None]


def fetch_file(url: str, headers: dict[str, str], target: Path, file: HubFile, on_bytes: OnBytes) -> None:
    """Download `url` to `target`, which appears when it is whole and has the digest that the hub states.

    What was downloaded before lies beside it, and stays there if the download fails. on_bytes: told of bytes as they
    come, of those of earlier runs first, and of negative numbers where some have to be fetched again.

    Raises:
        UserError: another process downloads it, it is longer than it should be, or is not what the digest is of.
        HTTPError: of huggingface_hub: the server answered no, or the connection failed again and again.
        OSError: the disk is full or cannot be written.
    """
    partial = target.with_name(target.name + UNFINISHED)
    with partial.open("a+b") as stream:
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{file.name} is being downloaded by another process; wait until it ends") from error
        if target.exists() and target.stat().st_size == file.size:  # by the one that had the lock
            on_bytes(file.size)
            partial.unlink(missing_ok=True)
            return
        sink = _Sink(stream, file, on_bytes)
        _fill(url, headers, sink)
        stream.flush()
        os.fsync(stream.fileno())
        if digest(partial, file) != file.digest:
            partial.unlink()
            on_bytes(-file.size)
            raise UserError(
                f"{file.name} came damaged: it is not what the hub's digest is of; try again, or from another network"
            )
        partial.replace(target)
    sync_directory(target.parent)


def digest(path: Path, file: HubFile) -> str:
    """The digest of a file on the disk, of the kind that the hub gives for it."""
    if file.is_large:
        return sha256_file(path)
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # as git names a blob
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _fill(url: str, headers: dict[str, str], sink: _Sink) -> None:
    """Bring what is missing, over as many connections as it takes while each brings something."""
    disable_progress_bars("huggingface_hub.http_get")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each connection that failed
    left = PATIENCE
    while sink.at < sink.file.size or not sink.file.size:
        before = sink.at
        try:
            http_get(
                url,
                cast(BinaryIO, sink),
                resume_size=sink.at,
                headers={**headers, "Accept-Encoding": "identity"},
                expected_size=sink.file.size,
            )
            return
        except HfHubHTTPError:
            raise
        except HTTPError:
            left = PATIENCE if sink.at > before else left - 1
            if not left:
                raise
            time.sleep(PAUSE)


class _Sink:
    """The part of a file's interface that `http_get` uses, over the unfinished file; nothing beyond the size passes."""

    def __init__(self, stream: BinaryIO, file: HubFile, on_bytes: OnBytes) -> None:
        self.file, self._stream, self._on_bytes = file, stream, on_bytes
        self.at = stream.seek(0, os.SEEK_END)
        if self.at > file.size:
            self.at = stream.truncate(0)
        on_bytes(self.at)

    def write(self, chunk: bytes) -> int:
        """Append."""
        if self.at + len(chunk) > self.file.size:
            raise UserError(
                f"the hub sends more than the {format_size(self.file.size)} that {self.file.name} should have"
            )
        self._stream.write(chunk)
        self.at += len(chunk)
        self._on_bytes(len(chunk))
        return len(chunk)

    def tell(self) -> int:
        """Bytes that are there."""
        return self.at

    def seek(self, place: int, *whence: Any) -> int:
        """To where the file is cut next: the server sends it from the beginning."""
        self._on_bytes(place - self.at)
        self.at = self._stream.seek(place)
        return self.at

    def truncate(self) -> int:
        """Drop what follows."""
        return self._stream.truncate(self.at)
