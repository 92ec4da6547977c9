"""Servers as processes of their own: `hybrid serve`, and llama_cpp.server of an interpreter that has it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving.client import LoadError

START_SECONDS = 120.0
STOP_SECONDS = 30.0


@contextlib.contextmanager
def hybrid_server(path: Path, mode: str, slots: int, context: int, threads: int) -> Iterator[int]:
    """`hybrid serve` of a model directory; its port. The model is called `model`."""
    port = free_port()
    command = [sys.executable, "-m", "hybrid.cli", "serve", str(path), "--port", str(port), "--mode", mode]
    options = {"--slots": slots, "--context": context, "--threads": threads, "--served-model-name": "model"}
    command += [str(word) for option in options.items() for word in option]
    with running(command, port):
        yield port


@contextlib.contextmanager
def llama_server(python: str, gguf: Path, context: int, threads: int) -> Iterator[int]:
    """llama_cpp.server of a GGUF file; its port.

    It computes one request at a time and has the others wait, streams included: `interrupt_requests`, by default on,
    would break a stream off when the next request comes. Logits of prompts are not asked for.
    """
    port = free_port()
    options = {
        "--model": gguf,
        "--model_alias": "model",
        "--host": "127.0.0.1",
        "--port": port,
        "--n_ctx": context,
        "--n_threads": threads,
        "--n_threads_batch": threads,
        "--logits_all": "false",
        "--interrupt_requests": "false",
        "--verbose": "false",
    }
    command = [python, "-m", "llama_cpp.server", *(str(word) for option in options.items() for word in option)]
    with running(command, port):
        yield port


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[None]:
    """A server, from when it lists its models until the context ends.

    Raises:
        LoadError: it ends, or does not answer in two minutes; with the end of what it said.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    said = log.read()[-1000:].decode(errors="replace").strip()
                    raise LoadError(f"{' '.join(command[:4])} does not serve: {said}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
