"""A Hugging Face hub on this machine's loopback: serves folders as repositories, to try downloads without the network.

    python scripts/loopback_hub.py FOLDER            # FOLDER/org/name is the repository org/name
    HF_ENDPOINT=http://127.0.0.1:PORT hybrid prepare org/name DIR

It answers what `hybrid` asks of a hub, as the real one does: a repository's files with sizes and digests, files by
commit with ranges and etags, large ones through a redirect to another host, errors with `X-Error-Code`. Faults can be
asked for: connections that break, a server that ignores ranges, damaged files, gated repositories.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 10_000  # bytes from which a file is served as the hub serves those of Git LFS
CHUNK = 1 << 16
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Faults:
    """What goes wrong. break_after: connections for large files close after so many bytes, all of them or the first
    `breaks`. ignore_ranges: everything is sent from the beginning. damaged: names whose bytes are wrong. longer: names
    that have bytes too many. status: what every request is answered with. gated: needs this token.
    """

    break_after: int | None = None
    breaks: int | None = None
    ignore_ranges: bool = False
    damaged: frozenset[str] = frozenset()
    longer: frozenset[str] = frozenset()
    status: int | None = None
    gated: str | None = None


@dataclass
class Repository:
    """A folder as a repository: one commit, on the branch `main`."""

    folder: Path

    @cached_property
    def commit(self) -> str:
        """Hex sha1 of all there is."""
        listed = [[name, entry["blobId"]] for name, entry in self.files.items()]
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()

    @cached_property
    def files(self) -> dict[str, dict[str, object]]:
        """What the hub says of each file."""
        found = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            data, name = path.read_bytes(), str(path.relative_to(self.folder))
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            found[name] = entry
        return found

    def etag(self, name: str) -> str:
        """sha256 of a large file, git's sha1 of another."""
        entry = self.files[name]
        lfs = entry.get("lfs")
        return str(lfs["sha256"] if isinstance(lfs, dict) else entry["blobId"])


@dataclass
class LoopbackHub:
    """A hub that serves `repositories`, by name, while it is entered. requests: `METHOD path` of each that came, and
    with_token: of those that brought one. ranges: the first byte of each that asked for a part.
    """

    repositories: dict[str, Repository]
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    with_token: list[str] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)

    @staticmethod
    def of_folder(folder: Path) -> LoopbackHub:
        """`folder/org/name` for each repository."""
        found = sorted(path for path in folder.glob("*/*") if path.is_dir())
        return LoopbackHub({f"{path.parent.name}/{path.name}": Repository(path) for path in found})

    @property
    def url(self) -> str:
        """Where it listens: the `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self, port: int = 0) -> None:
        """Listen."""
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Bound)
        self._server.daemon_threads = True

    def __enter__(self) -> LoopbackHub:
        self.start()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self) -> None:
        """Until interrupted."""
        self._server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._send_file)

    def do_HEAD(self) -> None:
        self._answer(lambda repository, name: self._head(200, {"Content-Length": repository.files[name]["size"]}))

    def log_message(self, *arguments: object) -> None:
        """Nothing: `requests` has them."""

    def _answer(self, send: Callable[[Repository, str], None]) -> None:
        path, faults = unquote(urlsplit(self.path).path), self.hub.faults
        self.hub.requests.append(f"{self.command} {path}")
        if "Authorization" in self.headers:
            self.hub.with_token.append(self.hub.requests[-1])
        if faults.status is not None:
            return self._error(faults.status, None)
        if found := _INFO.fullmatch(urlsplit(self.path).path):
            return self._info(unquote(found[1]), unquote(found[2] or "main"))
        stored = path.startswith("/lfs/")
        found = _RESOLVE.fullmatch(path.removeprefix("/lfs"))
        repository = self.hub.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            return self._error(404, "RepoNotFound")
        if faults.gated and not stored and self.headers.get("Authorization") != f"Bearer {faults.gated}":
            return self._error(401, "GatedRepo")
        if found[2] not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound")
        if found[3] not in repository.files:
            return self._error(404, "EntryNotFound")
        if "lfs" in repository.files[found[3]] and not stored:
            return self._redirect(repository, found[3], path)
        return send(repository, found[3])

    def _info(self, name: str, revision: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound")
        if revision not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound")
        body = {"id": name, "modelId": name, "sha": repository.commit, "siblings": list(repository.files.values())}
        data = json.dumps({**body, "private": False, "gated": bool(self.hub.faults.gated), "tags": []}).encode()
        self._head(200, {"Content-Length": len(data), "Content-Type": "application/json"})
        self.wfile.write(data)
        return None

    def _redirect(self, repository: Repository, name: str, path: str) -> None:
        size = repository.files[name]["size"]
        linked = {
            "X-Linked-Size": size,
            "X-Linked-ETag": f'"{repository.etag(name)}"',
            "X-Repo-Commit": repository.commit,
        }
        self._head(
            302,
            {**linked, "Location": f"{self.hub.url}/lfs{path}".replace("127.0.0.1", "localhost"), "Content-Length": 0},
        )

    def _send_file(self, repository: Repository, name: str) -> None:
        faults, data = self.hub.faults, (repository.folder / name).read_bytes()
        if name in faults.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if name in faults.longer:
            data += b"more"
        asked = _RANGE.match(self.headers.get("Range", ""))
        if asked:
            self.hub.ranges.append(int(asked[1]))
        start = int(asked[1]) if asked and not faults.ignore_ranges else 0
        if asked and start >= len(data):
            return self._error(416, None)
        headers = {"Content-Length": len(data) - start, "ETag": f'"{repository.etag(name)}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, {**headers, "X-Repo-Commit": repository.commit})
        end = len(data)
        if faults.break_after is not None and "lfs" in repository.files[name] and faults.breaks != 0:
            faults.breaks = None if faults.breaks is None else faults.breaks - 1
            end = min(end, start + faults.break_after)
        for at in range(start, end, CHUNK):
            piece = data[at : min(end, at + CHUNK)]
            self.wfile.write(piece)
        if end < len(data):
            self.close_connection = True
        return None

    def _error(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._head(status, {**headers, "Content-Length": 0})

    def _head(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="the repository org/name is its folder org/name")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args()
    hub = LoopbackHub.of_folder(options.folder)
    hub.start(options.port)
    print(f"{hub.url} serves {', '.join(hub.repositories) or 'nothing'}", flush=True)
    try:
        hub.serve()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
