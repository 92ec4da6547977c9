"""Streams where pieces are timed: what the device took for each, and what both units took between fork and join."""

from __future__ import annotations

from collections.abc import Hashable

from hybrid.model.decoder import ComputeUnit
from hybrid.ops import cpu
from hybrid.runtime.pieces import Piece
from hybrid.runtime.streams import Streams, Work
from hybrid.runtime.timing import Mark, StepTimes


class TimedStreams:
    """Other streams, each piece of the device timed; see `Streams`. What the host's programs took they note themselves.

    piece: the one that is issued next, which gives its name. unit: the device's.
    """

    def __init__(self, streams: Streams, times: StepTimes, unit: ComputeUnit) -> None:
        self.piece: Piece | None = None
        self._streams, self._times, self._unit = streams, times, unit
        self._began: Mark | None = None  # the main stream's part of a layer that both units compute
        self._joins: list[tuple[Mark, Mark, Mark]] = []

    def call(self, work: Work, aside: bool) -> None:
        """See `Streams`."""
        piece = self.piece
        assert piece is not None, "what is issued belongs to a piece"
        if not aside and self._began is None:
            self._began = self._now()

        def timed() -> None:
            began = self._times.mark(self._unit.device)
            work()
            self._times.took(piece.unit, piece.layer, piece.kind, began, self._times.mark(self._unit.device))

        self._streams.call(timed, aside)

    def host(self, function: cpu.HostFunction, aside: bool) -> None:
        """See `Streams`."""
        self._streams.host(function, aside)

    def fork(self) -> None:
        """See `Streams`."""
        self._streams.fork()
        self._began = None

    def join(self) -> None:
        """See `Streams`."""
        done = self._now()
        self._streams.join()
        assert self._began is not None, "the main stream has a part of it"
        self._joins.append((self._began, done, self._now()))

    def run(self, name: Hashable, issue: Work) -> None:
        """See `Streams`."""
        self._streams.run(name, issue)

    def close(self) -> bool:
        """See `Streams`."""
        return self._streams.close()

    def together(self) -> list[tuple[tuple[float, float], float]]:
        """Of each layer that both units computed: when the main stream began and ended its part, and when both parts
        were there."""
        times = [[self._times.seconds(mark) for mark in marks] for marks in self._joins]
        return [((began, done), joined) for began, done, joined in times]

    def _now(self) -> Mark:
        """Once the main stream is done with all that it was given."""
        marks: list[Mark] = []
        self._streams.call(lambda: marks.append(self._times.mark(self._unit.device)), False)
        return marks[0]
