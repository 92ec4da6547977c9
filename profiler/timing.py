"""Times callables that are handed in: each alone, or beside another that runs meanwhile; in rounds, by medians.

Machines are never quiet. So callables take turns, and a disturbance meets all of them; a round's figure is the median
of its calls, the result the median of the rounds, and how far rounds lie apart is told with it.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Call = Callable[[], object]
Clock = Callable[[], float]
K = TypeVar("K")


@dataclass(frozen=True)
class Case:
    """What is timed: `call`, while `beside`, if there is one, is called over and over by a thread of its own."""

    call: Call
    beside: Call | None = None


@dataclass(frozen=True)
class Timing:
    """rounds: seconds of one call, the median of each round. calls: how many were timed in all."""

    rounds: tuple[float, ...]
    calls: int

    @property
    def seconds(self) -> float:
        """Of one call, the median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """See `spread`."""
        return spread(self.rounds)

    def beyond(self, other: Timing) -> list[float]:
        """For each round the seconds by which a call took longer than the other case's in the same round."""
        return [mine - its for mine, its in zip(self.rounds, other.rounds, strict=True)]

    def over(self, other: Timing) -> list[float]:
        """For each round how many times longer a call took than the other case's in the same round."""
        return [mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)]


def time_cases(
    cases: Mapping[K, Case],
    seconds: float,
    rounds: int = 5,
    clock: Clock = time.perf_counter,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[K, Timing]:
    """Time every case for `seconds` altogether, in `rounds` in which the cases take turns.

    A case is called at least once a round, and once before the first, untimed. `tell` hears how many turns of how many
    are done. What a call raises is raised here, whichever thread it ran in.
    """
    assert rounds >= 1 and seconds >= 0
    medians: dict[K, list[float]] = {name: [] for name in cases}
    calls = dict.fromkeys(cases, 0)
    turns = len(cases) * rounds
    for turn in range(rounds):
        for number, (name, case) in enumerate(cases.items()):
            with contextlib.nullcontext() if case.beside is None else repeated(case.beside):
                if turn == 0:
                    case.call()
                times = _times(case.call, seconds / rounds, clock)
            medians[name].append(statistics.median(times))
            calls[name] += len(times)
            tell(turn * len(cases) + number + 1, turns)
    return {name: Timing(tuple(found), calls[name]) for name, found in medians.items()}


def spread(values: Sequence[float]) -> float:
    """The distance between the quartiles over the median; 0 of one value, and where the median is 0."""
    middle = statistics.median(values)
    if len(values) < 2 or not middle:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / abs(middle)


@contextlib.contextmanager
def repeated(call: Call) -> Iterator[None]:
    """Call it over and over on a thread of its own for the length of the block, which begins after the first call.

    What it raised is raised at the end of the block.
    """
    stop, begun = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                call()
                begun.set()
        except BaseException as error:
            failures.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=work, name="hybrid-beside", daemon=True)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def intercept(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """What is left of times at size 0: the least-squares line's value there, or 0 where that is below."""
    return max(0.0, statistics.linear_regression(sizes, seconds).intercept)


def _times(call: Call, seconds: float, clock: Clock) -> list[float]:
    times: list[float] = []
    began = clock()
    while True:
        before = clock()
        call()
        ended = clock()
        times.append(ended - before)
        if ended - began >= seconds:
            return times
