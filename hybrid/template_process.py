"""The parent's side of the process in which chat templates run; see `template_sandbox`."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from hybrid.template_sandbox import (
    MEMORY_LIMIT,
    RENDERED_LIMIT,
    read_message,
    write_message,
)
from profiler.artifacts import format_size

PROCESSOR_SECONDS = 5.0  # of one conversation, or of compiling the templates
WALL_SECONDS = 120  # beyond the processor's time: what waits for something that never comes
START = "import sys; sys.path[:] = sys.argv[1:]; from hybrid.template_sandbox import main; main()"


class TemplateRefused(Exception):  # noqa: N818 - whose error it is, the template's or the caller's, is not known
    """A template cannot be compiled, or does not make a text of these values; the message says why."""


class TemplateProcess:
    """Compiled templates in a process of their own, which is started anew where one of them brought it down.

    Any thread may call; they take turns. The process ends with this object, with `close`, or with this process.

    Args:
        sources: templates by name.
        seconds: of a processor, for one conversation.

    Raises:
        TemplateRefused: jinja2 cannot read a source, or not within the limits.

    """

    def __init__(self, sources: Mapping[str, str], seconds: float = PROCESSOR_SECONDS) -> None:
        self._first = {"sources": dict(sources), "seconds": seconds}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., TemplateProcess] | None = None
        with self._lock:
            self._start()

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """The text that a template makes of values, which are JSON throughout.

        Raises:
            TemplateRefused: it refuses them, fails, or takes more time, memory or characters than it may.
        """
        with self._lock:
            if self._process is None:
                self._start()
            try:
                answer = self._ask({"template": name, "values": values})
            except (RecursionError, TypeError, ValueError) as error:
                raise TemplateRefused(f"its values are no JSON: {error}") from error
        if answer.get("too_long"):
            raise TemplateRefused(f"it makes over {format_size(RENDERED_LIMIT)}")
        if not isinstance(text := answer.get("text"), str):
            raise TemplateRefused(str(answer.get("refused")))
        return text

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        command = [sys.executable, "-c", START, *(part for part in sys.path if part)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._end = weakref.finalize(self, _finish, self._process)
        answer = self._ask(self._first)
        if "refused" in answer:
            self._stop()
            raise TemplateRefused(str(answer["refused"]))

    def _stop(self) -> None:
        self._process = None
        if self._end is not None:
            self._end()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answer = None
        try:
            with contextlib.suppress(BrokenPipeError):
                write_message(process.stdin, message)
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            if any(poll.poll(1000) for _ in range(WALL_SECONDS)):  # where both are stopped it counts as one second
                answer = read_message(process.stdout)
        finally:
            if answer is None:  # it ended, or the caller was interrupted and what it asked would be answered next time
                self._stop()
        if answer is None:
            if process.returncode == -signal.SIGPROF:
                raise TemplateRefused(f"it computes for more than {self._first['seconds']:g} s")
            raise TemplateRefused(f"it takes more than {format_size(MEMORY_LIMIT)} of memory, or brought jinja2 down")
        return answer


def _finish(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(0.2)  # one that ended by itself says why
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
