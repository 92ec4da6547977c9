"""What units did when, where a step is computed one operator after the other: by the clock of each unit.

A GPU computes later than it is told to, so its times are marks in its stream, which are read once the step is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hybrid.model.decoder import ComputeUnit, LayerParts, NormWeights, Operators, OuterParts, Projection
from hybrid.runtime.activity import Overlap
from hybrid.runtime.trace import Spans

Mark = float | torch.cuda.Event


class DeviceClock:
    """The clock of a CUDA device, set by the host's `time.perf_counter`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = self.mark()
        self._first.synchronize()
        self._set = time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        """When all that was asked of the current stream so far is done."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, mark: torch.cuda.Event) -> float:
        """The mark's time; waits until it is past."""
        mark.synchronize()
        return self._set + float(self._first.elapsed_time(mark)) / 1000


@dataclass(frozen=True)
class SplitTimes:
    """Marks of a layer that both units computed: the unit beside attention (near) and the other (far), by their names.

    handing: the hand-over began; handed: it was over. near, far: each side began and ended. waiting: this side began
    to wait for the other, and went on.
    """

    layer: int
    units: tuple[str, str]
    handing: Mark
    handed: Mark
    near: tuple[Mark, Mark]
    far: tuple[Mark, Mark]
    waiting: tuple[float, float]


class StepTimes:
    """The times of one step."""

    def __init__(self) -> None:
        self._clock: DeviceClock | None = None  # of the one device that there is beside the host
        self._spans: list[tuple[str, int | None, str, Mark, Mark]] = []
        self._split: list[SplitTimes] = []

    def mark(self, device: torch.device) -> Mark:
        """Now, by the clock of a device."""
        if device.type != "cuda":
            return time.perf_counter()
        self._clock = self._clock or DeviceClock(device)
        return self._clock.mark()

    @contextlib.contextmanager
    def span(self, unit: ComputeUnit, layer: int | None, kind: str) -> Iterator[None]:
        """Around what a unit does."""
        began = self.mark(unit.device)
        yield
        self.took(unit.name, layer, kind, began, self.mark(unit.device))

    def took(self, unit: str, layer: int | None, kind: str, began: Mark, ended: Mark) -> None:
        """Take when a unit, by its name, began and ended something."""
        self._spans.append((unit, layer, kind, began, ended))

    def split(self, times: SplitTimes) -> None:
        """Take the times of a layer that both units computed."""
        self._split.append(times)

    def settle(self, overlap: Overlap, spans: Spans | None) -> None:
        """Add the step's split layers to the sums, and all that was timed to the spans, if any; the step is done."""
        for layer in self._split:
            self._settle_split(layer, overlap, spans)
        for unit, index, kind, *marks in self._spans if spans is not None else ():
            assert spans is not None
            spans.add(unit, index, kind, *map(self.seconds, marks))

    def seconds(self, mark: Mark) -> float:
        """A mark's time; waits until it is past."""
        if isinstance(mark, float):
            return mark
        assert self._clock is not None, "marks of a device come from its clock"
        return self._clock.seconds(mark)

    def _settle_split(self, layer: SplitTimes, overlap: Overlap, spans: Spans | None) -> None:
        handing, handed = map(self.seconds, (layer.handing, layer.handed))
        near, far = ((self.seconds(began), self.seconds(ended)) for began, ended in (layer.near, layer.far))
        idle, until = layer.waiting
        # The thread that waits has told its unit all; the unit waits once it has done that, if it then still has to.
        idle = max(idle, handed if until <= near[0] else near[1])
        wait = max(0.0, until - idle)
        overlap.add(Overlap.of_layer(near, far, wait))
        if spans is None:
            return
        here, there = layer.units
        spans.add(here, layer.layer, "hand-over", handing, handed)
        spans.add(here, layer.layer, "feed-forward", *near)
        spans.add(there, layer.layer, "feed-forward", *far)
        if wait:
            spans.add(here, layer.layer, "waiting", idle, until)


class TimedOperators:
    """Other operators, each timed; see `hybrid.model.decoder.Operators`. The parts of an FFN are timed where they are
    computed."""

    def __init__(self, operators: Operators, times: StepTimes) -> None:
        self._operators, self._times = operators, times
        self._unit: ComputeUnit | None = None
        self._layer: int | None = None

    def embed(self, outer: OuterParts) -> torch.Tensor:
        """See `Operators`."""
        with self._times.span(outer.embeddings_unit, None, "embeddings"):
            return self._operators.embed(outer)

    def follow(self, x: torch.Tensor, unit: ComputeUnit, layer: int | None) -> torch.Tensor:
        """See `Operators`."""
        self._unit, self._layer = unit, layer
        return self._operators.follow(x, unit, layer)

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operators`."""
        with self._here("norms"):
            return self._operators.norm(x, norm)

    def project(self, unit: ComputeUnit, x: torch.Tensor, projections: Sequence[Projection]) -> Sequence[torch.Tensor]:
        """See `Operators`."""
        with self._here("linear"):
            return self._operators.project(unit, x, projections)

    def attend(self, layer: LayerParts, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        with self._here("attention"):
            return self._operators.attend(layer, q, k, v)

    def feed_forward(self, index: int, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        return self._operators.feed_forward(index, x, residual)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Operators`."""
        with self._here("sums"):
            return self._operators.add(x, y)

    def _here(self, kind: str) -> contextlib.AbstractContextManager[None]:
        assert self._unit is not None, "the state follows a unit before anything is computed"
        return self._times.span(self._unit, self._layer, kind)
