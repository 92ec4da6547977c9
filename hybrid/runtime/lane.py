"""The lane: work submitted to the other device while this one goes on, then joined."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Protocol

import torch

from hybrid.ops import cpu

Work = Callable[[], torch.Tensor]
INTERRUPTIBLE = 0.1  # seconds of waiting between two looks for an interrupt
LOST = "the thread that computes for the other unit was lost, as in a child of a fork; open the model anew"


class Lane(Protocol):
    """One piece of work at a time: submit it, do something else, join it for its result."""

    def check(self) -> None:
        """Raise RuntimeError where there is no worker any more."""

    def submit(self, work: Work) -> None:
        """Start the work, once that which nobody joined is done, if there is some."""

    def join(self) -> torch.Tensor:
        """Wait for the work's result; raises what the work raised."""

    def close(self) -> None:
        """Stop the worker once its work is done."""


class ThreadLane:
    """A lane over one thread. A failure in the worker is kept, completes the hand-over, and is raised by `join`.

    Both sides wait for each other without the interpreter lock, and watch for a while before they sleep: waking a
    sleeper takes as long as a small layer's rows. Work may be given up, by whoever is interrupted or has failed: the
    worker ends it, and nobody asks for its result. A worker that is gone, as in a child of a fork, is an error.
    """

    def __init__(self) -> None:
        self._given, self._done = cpu.Signal(), cpu.Signal()
        self._submitted = 0
        self._work: Work | None = None
        self._result: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._pending = False
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="hybrid-lane", daemon=True)
        self._worker.start()

    def check(self) -> None:
        """See `Lane`. Asked before torch computes too, which waits for ever for threads of its own that a fork lost."""
        if not self._worker.is_alive():
            raise RuntimeError("the lane is closed" if self._closed else LOST)

    def submit(self, work: Work) -> None:
        """Hand the work to the worker thread."""
        self._wait()  # for work that was given up, if any
        self._result = self._error = None
        self._work, self._pending = work, True  # until the worker is told, no interrupt comes between
        self._submitted += 1
        self._given.notify()

    def join(self) -> torch.Tensor:
        """The result of the work submitted last."""
        assert self._pending, "nothing was submitted"
        self._pending = False
        self._wait()
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        assert result is not None
        return result

    def _wait(self) -> None:
        """Until the worker has done what was submitted."""
        self.check()
        while not self._done.wait_for(self._submitted, INTERRUPTIBLE):
            self.check()

    def close(self) -> None:
        """End the worker; what was submitted but not joined is finished and dropped."""
        closed, self._closed = self._closed, True
        if not closed and self._worker.is_alive():
            self._given.notify()
        self._worker.join()

    def _run(self) -> None:
        for turn in itertools.count(1):
            self._given.wait(turn)
            work, self._work = self._work, None
            if work is None:
                return
            try:
                self._result = work()
            except BaseException as caught:
                self._error = caught
            del work  # with all that it holds, before somebody goes on with that
            self._done.notify()
