"""Where the pieces of a step go: a main stream, and a second one beside it while rows are computed on both units.

`HostStreams` are those of a device that is computed by the interpreter, in host memory: calls are made at once, and a
native lane is the second stream. Those of CUDA are in `cuda_streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from hybrid.ops import cpu

Work = Callable[[], object]


class Streams(Protocol):
    """A main stream and a second one; `aside` means the second. What goes there comes after the last `fork`."""

    def call(self, work: Work, aside: bool) -> None:
        """Have the device do what `work` asks it for."""

    def host(self, function: cpu.HostFunction, aside: bool) -> None:
        """Have the host run a program."""

    def fork(self) -> None:
        """Let the second stream go on from here, where the main stream is."""

    def join(self) -> None:
        """Let the main stream wait for the second one."""

    def run(self, name: Hashable, issue: Work) -> None:
        """Issue pieces, and wait until all is done. The same name stands for the same pieces every time, so that what
        they once were may be repeated; None is no name.
        """

    def close(self) -> bool:
        """Give back what the streams hold; whether it is certain that no program is called any more."""


class HostStreams:
    """The streams of a device in host memory. Without overlap the second stream's work is done in its turn.

    On the second stream a host's program is submitted to the lane, and what comes after it is done at the join.
    """

    def __init__(self, overlap: bool = True) -> None:
        self._lane = cpu.Lane() if overlap else None
        self._busy = False
        self._after: list[Work] = []

    def call(self, work: Work, aside: bool) -> None:
        """See `Streams`."""
        if aside and self._busy:
            self._after.append(work)
        else:
            work()

    def host(self, function: cpu.HostFunction, aside: bool) -> None:
        """See `Streams`."""
        if aside and self._lane is not None:
            assert not self._busy, "the second stream has one program between a fork and a join"
            function.submit(self._lane)
            self._busy = True
        else:
            function.run()

    def fork(self) -> None:
        """See `Streams`."""

    def join(self) -> None:
        """See `Streams`."""
        self._wait()
        after, self._after = self._after, []
        for work in after:
            work()

    def run(self, name: Hashable, issue: Work) -> None:
        """See `Streams`."""
        try:
            issue()
        finally:  # what failed on this side leaves the lane free
            self._wait()
            self._after.clear()

    def close(self) -> bool:
        """See `Streams`."""
        self._lane = None
        return True

    def _wait(self) -> None:
        busy, self._busy = self._busy, False
        if busy and self._lane is not None:
            self._lane.join()
