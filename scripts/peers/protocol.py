"""How the benchmark talks to a contender: one JSON object a line each way. Standard library only: peers import it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
Handler = Callable[..., dict[str, Any]]


class WorkerError(RuntimeError):
    """A contender failed; the message is its own."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the input ends. What libraries print goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends its workers by closing their input
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("command")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A contender in a process of its own: `python -m MODULE`. A context manager."""

    def __init__(self, module: str, python: str = sys.executable, environment: Mapping[str, str] | None = None) -> None:
        path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
        self._module = module
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerError: the contender failed or ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self._module} ended with status {self._process.wait()} instead of answering {command}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._module}, {command}: {answer['error']}")
        return answer
