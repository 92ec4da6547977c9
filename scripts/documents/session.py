"""Runs a document's commands as its reader would: in the checkout, or in a folder and with a cache of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
LINKED = ("hybrid", "scripts", "docs", "benchmarks")  # what commands in a fresh folder find there of the checkout
STARTS = 180.0  # seconds that a server may take to say its address
FIGURE = re.compile(r"[-+~]?\d[\d,.]*(e[-+]?\d+)?")
UNIT = re.compile(r"# ?(%|x|B|[KMG]iB|ms|us|min|s|G|M|k)\b|# ?%|#x")
DIGEST = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b")


class Session:
    """Commands one after another, in `folder`, with this interpreter's programs first."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder = folder
        self.cache: Path | None = None
        self.servers: list[subprocess.Popen[str]] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        if cache is not None:
            self.use_cache(cache)

    def use_cache(self, cache: Path) -> None:
        """Have commands keep their files there, and outputs show it as the user's own."""
        self.cache = cache
        self.environment["HYBRID_CACHE"] = str(cache)

    def run(self, command: str) -> str:
        """What a command prints, stdout and stderr together.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            ["bash", "-c", command],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
        )
        if done.returncode:
            raise RuntimeError(f"{command!r} ended with {done.returncode}:\n{done.stdout}")
        return self.neutral(done.stdout)

    def start(self, command: str) -> str:
        """What a server prints until it has said its address; it goes on until the session is closed.

        Raises:
            RuntimeError: it ended, or said nothing in time.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], text=True, env=self.environment, cwd=self.folder, **pipes
        )
        self.servers.append(server)
        assert server.stdout is not None, "it is a pipe"
        lines: list[str] = []
        end = time.monotonic() + STARTS
        while time.monotonic() < end and (line := server.stdout.readline()):
            lines.append(line)
            if "http://" in line:
                return self.neutral("".join(lines))
        raise RuntimeError(f"{command!r} did not say its address:\n{''.join(lines)}")

    def neutral(self, output: str) -> str:
        """Without the places of this machine."""
        if self.cache is not None:
            output = output.replace(str(self.cache), "~/.cache/hybrid")
        for place, shown in ((f"{self.folder}/", ""), (f"{CHECKOUT}/", ""), (str(Path.home()), "~")):
            output = output.replace(place, shown)
        return output.rstrip()

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait(60)
            assert server.stdout is not None, "it is a pipe"
            server.stdout.close()


@contextlib.contextmanager
def session(fresh: bool) -> Iterator[Session]:
    """A session in the checkout, or in a fresh folder with an empty cache and links to the checkout's parts."""
    with contextlib.ExitStack() as stack:
        folder, cache = CHECKOUT, None
        if fresh:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybrid-documents-")))
            folder, cache = made / "work", made / "cache"
            folder.mkdir()
            for name in LINKED:
                (folder / name).symlink_to(CHECKOUT / name)
        found = Session(folder, cache)
        stack.callback(found.close)
        yield found


def masked(output: str) -> list[str]:
    """Lines of an output without what differs between runs: figures and their units, digests, widths of tables."""
    lines = []
    for line in output.strip().splitlines():
        text = DIGEST.sub("#", line)
        text = UNIT.sub("#", FIGURE.sub("#", text))
        text = re.sub(r":?-{2,}:?", "-", text)
        text = re.sub(r"#[# ]*#|#", "#", text)
        lines.append(re.sub(r"\s+", " ", text).strip())
    return lines
