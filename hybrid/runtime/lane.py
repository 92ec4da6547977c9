"""The lane: work submitted to the other device while this one goes on, then joined."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

from hybrid.ops import cpu

Work = Callable[[], torch.Tensor]
INTERRUPTIBLE = 0.1  # seconds of waiting between two looks for an interrupt


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
    """A lane over one thread. A failure in the worker is kept, completes the hand-over, and is raised by `join`.

    Both sides wait for each other without the interpreter lock, and watch for a while before they sleep: waking a
    sleeper takes as long as a small layer's rows.
    """

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self._given, self._done = cpu.Signal(), cpu.Signal()
        self._submitted = 0
        self._work: Work | None = None
        self._result: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._pending = False
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="hybrid-lane", daemon=True)
        self._worker.start()

    def submit(self, work: Work) -> None:
        """Hand the work to the worker thread."""
        assert not self._pending, "the lane holds one piece of work at a time"
        if self._closed:
            raise RuntimeError("the lane is closed")
        self._work, self._pending = work, True
        self._submitted += 1
        self._given.notify()

    def join(self) -> torch.Tensor:
        """The result of the work submitted last."""
        assert self._pending, "nothing was submitted"
        while not self._done.wait_for(self._submitted, INTERRUPTIBLE):
            pass
        result, error = self._result, self._error
        self._result, self._error, self._pending = None, None, False
        if error is not None:
            raise error
        assert result is not None
        return result

    def close(self) -> None:
        """End the worker; what was submitted but not joined is finished and dropped."""
        if not self._closed:
            self._closed = True
            self._given.notify()
        self._worker.join()

    def _run(self) -> None:
        for turn in itertools.count(1):
            self._given.wait(turn)
            work, self._work = self._work, None
            if work is None:
                return
            began = time.perf_counter()
            try:
                self._result = work()
            except BaseException as caught:
                self._error = caught
            self.busy_seconds += time.perf_counter() - began
            del work  # with all that it holds, before somebody goes on with that
            self._done.notify()
