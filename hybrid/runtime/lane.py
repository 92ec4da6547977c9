"""The lane: work submitted to the other device while this one goes on, then joined."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], torch.Tensor]


class Lane(Protocol):
    """One piece of work at a time: submit it, do something else, join it for its result."""

    busy_seconds: float

    def submit(self, work: Work) -> None:
        """Start the work; at most one is under way."""

    def join(self) -> torch.Tensor:
        """Wait for the work's result; raises what the work raised."""

    def close(self) -> None:
        """Stop the worker once its work is done."""


class ThreadLane:
    """A lane over one thread. A failure in the worker is kept, completes the hand-over, and is raised by `join`."""

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self._changed = threading.Condition()
        self._work: Work | None = None
        self._result: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._pending = False
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="hybrid-lane", daemon=True)
        self._worker.start()

    def submit(self, work: Work) -> None:
        """Hand the work to the worker thread."""
        with self._changed:
            assert not self._pending, "the lane holds one piece of work at a time"
            if self._closed:
                raise RuntimeError("the lane is closed")
            self._work, self._pending = work, True
            self._changed.notify_all()

    def join(self) -> torch.Tensor:
        """The result of the work submitted last."""
        with self._changed:
            assert self._pending, "nothing was submitted"
            self._changed.wait_for(lambda: self._result is not None or self._error is not None)
            result, error = self._result, self._error
            self._result, self._error, self._pending = None, None, False
        if error is not None:
            raise error
        assert result is not None
        return result

    def close(self) -> None:
        """End the worker; what was submitted but not joined is finished and dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work is not None or self._closed)
                work, self._work = self._work, None
            if work is None:
                return
            result: torch.Tensor | None = None
            error: BaseException | None = None
            began = time.perf_counter()
            try:
                result = work()
            except BaseException as caught:
                error = caught
            with self._changed:
                self.busy_seconds += time.perf_counter() - began
                self._result, self._error = result, error
                self._changed.notify_all()
