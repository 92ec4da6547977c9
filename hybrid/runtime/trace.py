"""A trace: which unit did what when, in the format that Perfetto and chrome://tracing show.

Each unit is a row of spans that never overlap one another; a row of their own has the steps and the tokens.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from hybrid.ops import cpu
from placement.plan import Unit
from profiler.artifacts import UserError, write_atomic

STEPS = 32  # of each kind that are traced where nothing else is said
MOST_SPANS = 1_000_000  # about 130 MB of file, which viewers still open
StepKind = Literal["prompt", "decode"]


class Spans(Protocol):
    """Is told what units did."""

    def add(self, unit: str, layer: int | None, kind: str, begin: float, end: float) -> None:
        """A unit, named as plans name it, did something from one time of `time.perf_counter` to another."""


class Trace:
    """The spans of the first steps: of so many that read prompts, and of as many that decode.

    Raises:
        UserError: that is no number of steps.
    """

    def __init__(self, steps: int = STEPS) -> None:
        if not 1 <= steps <= MOST_SPANS:
            raise UserError(f"a trace of {steps} steps makes no sense; give 1 to {MOST_SPANS}")
        self.steps = steps
        self.seen: Counter[str] = Counter()  # steps by kind
        self.traced: Counter[str] = Counter()
        self._began = time.perf_counter()
        self._rows = {name: place for place, name in enumerate(("steps", *get_args(Unit)))}
        self._events: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._events)

    @contextlib.contextmanager
    def step(self, kind: StepKind) -> Iterator[Trace | None]:
        """Around a step: the trace, where its spans go to, or None where enough was traced."""
        self.seen[kind] += 1
        if self.seen[kind] > self.steps or len(self) >= MOST_SPANS:
            yield None
            return
        self.traced[kind] += 1
        began = time.perf_counter()
        try:
            yield self
        finally:
            self._span("steps", f"{kind} {self.seen[kind]}", kind, began, time.perf_counter(), {})

    def add(self, unit: str, layer: int | None, kind: str, begin: float, end: float) -> None:
        """See `Spans`; what is too much is left out."""
        if len(self) < MOST_SPANS:
            name, about = (kind, {}) if layer is None else (f"{kind} {layer}", {"layer": layer})
            self._span(unit, name, kind, begin, end, about)

    def token(self, number: int) -> None:
        """So many tokens were sampled by now of some sequence."""
        at = {"pid": 1, "tid": self._rows["steps"], "ts": self._microseconds(time.perf_counter())}
        self._events.append({"ph": "i", "s": "p", **at, "name": f"token {number}", "cat": "token", "args": {}})

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file, all or nothing; `about` is what else a reader of it should know.

        Raises:
            UserError: it cannot be written.
        """
        left_out = {kind: self.seen[kind] - self.traced[kind] for kind in self.seen}
        events = [*self._metadata(), *self._events]
        other = {**about, "steps": dict(self.traced), "steps_left_out": left_out}
        document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}
        write_atomic(path, json.dumps(document, separators=(",", ":"), default=str).encode())

    def _span(self, row: str, name: str, kind: str, begin: float, end: float, about: dict[str, int]) -> None:
        at, until = self._microseconds(begin), self._microseconds(end)
        where = {"pid": 1, "tid": self._rows[row], "ts": at, "dur": round(until - at, 3)}
        self._events.append({"ph": "X", **where, "name": name, "cat": kind, "args": about})

    def _microseconds(self, seconds: float) -> float:
        """Since the trace began, to a nanosecond: whatever ended when another began still does."""
        return round((seconds - self._began) * 1e6, 3)

    def _metadata(self) -> Iterator[dict[str, Any]]:
        yield {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "hybrid"}}
        for row, place in self._rows.items():
            named, sorted_by = {"name": row if row == "steps" else row.upper()}, {"sort_index": place}
            yield {"ph": "M", "pid": 1, "tid": place, "name": "thread_name", "args": named}
            yield {"ph": "M", "pid": 1, "tid": place, "name": "thread_sort_index", "args": sorted_by}


@contextlib.contextmanager
def noted(programs: Sequence[cpu.Program], units: Mapping[cpu.Pool, str], spans: Spans | None) -> Iterator[None]:
    """Around a run of the first of these programs: what it and those it hands over do is added to `spans`, if any.

    Also when the run fails, as far as it got. `units`: the names of the units by their pools.
    """
    programs[0].note(spans is not None)
    try:
        yield
    finally:
        if spans is not None:
            for program in programs:
                for kind, layer, pool, begin, end in program.notes:
                    assert pool is not None, "all that a step does belongs to a unit"
                    spans.add(units[pool], None if layer < 0 else layer, kind, begin, end)
