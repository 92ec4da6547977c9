"""How a comparison talks to a contender: one JSON object a line each way.

Standard library only: an interpreter that has nothing of this project's imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent.parent  # the folder that holds the package `hybrid`
# Folders go to the end of the path: an interpreter with libraries of its own keeps those. Ctrl-C is for the parent.
BOOTSTRAP = (
    "import os, runpy, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "sys.path = [p for p in sys.path if p] + sys.argv.pop(1).split(os.pathsep)\n"
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')\n"
)
GRACE = 5.0  # seconds in which a contender that was told to end may do so by itself
Handler = Callable[..., dict[str, Any]]


class WorkerError(RuntimeError):
    """A contender failed. The message says which one and at what; `reason`: only why, in its own words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the input ends. What libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("command")](**request)
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A contender in a process of its own, which runs a module. A context manager: its end is the process's.

    python: the interpreter. folders: where modules are found that are not of this package. environment: variables that
    differ from this process's.
    """

    def __init__(
        self,
        module: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        folders: Sequence[Path] = (),
    ) -> None:
        path = os.pathsep.join(map(str, [*folders, ROOT]))
        self._module = module
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed where the process ends
        try:
            self._process = subprocess.Popen(
                [python, "-c", BOOTSTRAP, path, module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        except BaseException:
            self._said.close()
            raise

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None)

    def close(self, at_once: bool = False) -> None:
        """End the process: it may finish what it does, unless it has to end at once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if at_once:
                self._process.kill()
            self._process.stdin.close()
            self._process.wait(GRACE)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()
            self._said.close()

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
            ended = f"ended with status {self._process.wait()} instead of answering {command}"
            last = self._last_words()
            raise WorkerError(f"{self._module} {ended}{last and f': {last}'}", f"its process {ended}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            message = answer["message"]
            raise WorkerError(f"{self._module}, {command}: {answer['error']}: {message}", message or answer["error"])
        return answer

    def _last_words(self) -> str:
        """The last line that the process wrote to its error stream."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
