"""The pieces that a step on a device and the host consists of, as they are recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybrid.ops import cpu
from hybrid.runtime.streams import Streams


@dataclass(frozen=True)
class Piece:
    """A part of a step under the name that a trace gives it: of which layer, if of one; on which unit; of what kind.

    What the second stream copies for the host counts as the host's, whose part it begins and ends.

    issue: puts it into streams, for so many tokens. program: of the host, that it calls.
    """

    layer: int | None
    unit: str
    kind: str
    issue: Callable[[Streams, int], None]
    program: cpu.Program | None = None


class Pieces:
    """Takes pieces in their order. layer: the one that they belong to, None outside of layers."""

    def __init__(self) -> None:
        self.layer: int | None = None
        self._taken: list[Piece] = []
        self._aside = False

    def on_device(self, kind: str, call: Callable[[int], object]) -> None:
        """What asks the device for something, for so many tokens."""
        aside = self._aside
        unit = "cpu" if aside else "gpu"
        self._add(unit, kind, lambda streams, tokens: streams.call(lambda: call(tokens), aside))

    def on_host(self, kind: str, function: cpu.HostFunction, program: cpu.Program) -> None:
        """A program of the host, which the function calls."""
        aside = self._aside
        self._add("cpu", kind, lambda streams, tokens: streams.host(function, aside), program)

    def fork(self) -> None:
        """From here on the second stream may be used."""
        self._add("gpu", "fork", lambda streams, tokens: streams.fork())

    def join(self) -> None:
        """From here on what the second stream did is there."""
        self._add("gpu", "join", lambda streams, tokens: streams.join())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is added within goes to the second stream."""
        self._aside = True
        yield
        self._aside = False

    def take(self) -> list[Piece]:
        """What was added since this was last asked for."""
        pieces, self._taken = self._taken, []
        return pieces

    def _add(
        self, unit: str, kind: str, issue: Callable[[Streams, int], None], program: cpu.Program | None = None
    ) -> None:
        self._taken.append(Piece(self.layer, unit, kind, issue, program))
