"""`EngineService`: the engine on a thread of its own, with a bounded queue before it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from hybrid.runtime.engine import Engine
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.ticket import Ticket
from profiler.artifacts import UserError

Health = Literal["ok", "draining", "failed"]
Watcher = Callable[[Collection[TokenSequence]], None]
MOST_FAILED_STEPS = 3  # in a row, before the engine counts as failed
RECENT = 0.2  # weight of the latest pause between two ends in their mean


class BusyError(Exception):
    """The queue is full; `retry_seconds` is when there may be room."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__("the queue is full")
        self.retry_seconds = retry_seconds


class UnavailableError(Exception):
    """No request is taken: the service drains, or its engine failed."""


class StoppedError(Exception):
    """What runs is given up, because the server stops."""


class EngineService:
    """Steps an engine on a thread that nobody else uses it from.

    Requests are submitted and cancelled on an event loop, and their tickets are told there of what happened, once for
    all that happened until the loop looks. `close` ends everything and joins the thread; the engine is the caller's.

    Args:
        engine: that nobody else steps from now on.
        queue: sequences that may wait while all slots are taken.

    """

    def __init__(self, engine: Engine, queue: int = 64) -> None:
        self.engine = engine
        self.slots = engine.options.max_sequences
        self.queue = queue
        self.failure: BaseException | None = None
        self._places: dict[TokenSequence, tuple[Ticket, int]] = {}  # what the engine has; of its thread
        self._changed = threading.Condition()  # of all that follows
        self._arrivals: deque[Ticket] = deque()
        self._leavers: deque[Ticket] = deque()
        self._failed_steps = 0  # in a row
        self._outstanding = 0  # sequences that have not ended
        self._pause = 1.0  # seconds from one end to the next, on average, while all slots are taken
        self._last_end: float | None = None
        self._draining = self._closed = False
        self._watchers: tuple[Watcher, Watcher] = _nobody, _nobody
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def health(self) -> Health:
        """Whether requests are taken, and if not why."""
        if self.failure is not None:
            return "failed"
        return "draining" if self._draining or self._closed else "ok"

    @property
    def outstanding(self) -> int:
        """Sequences that wait or run."""
        return self._outstanding

    @property
    def capacity(self) -> int:
        """Sequences that may wait or run at once."""
        return self.slots + self.queue

    def submit(self, *sequences: TokenSequence, progress: bool = True) -> Ticket:
        """Have sequences computed; on an event loop, which is told of their end, and of progress where that is wanted.

        All of them are taken, or none.

        Raises:
            BusyError: there is no room for them now.
            UnavailableError: none are taken any more.
        """
        ticket = Ticket(sequences, self._leave, progress)
        with self._changed:
            if self.failure is not None:
                raise UnavailableError(f"the engine failed ({self.failure}); restart the server")
            if self._draining or self._closed:
                raise UnavailableError("the server is stopping")
            excess = self._outstanding + len(sequences) - self.capacity
            if excess > 0:
                raise BusyError(min(600, max(1, math.ceil(excess * self._pause))))
            self._outstanding += len(sequences)
            self._arrivals.append(ticket)
            self._changed.notify()
        return ticket

    def watch(self, advanced: Watcher, ended: Watcher) -> None:
        """Tell of sequences that a step advanced or ended, and of others that ended; on the engine's thread."""
        self._watchers = advanced, ended

    def drain(self) -> None:
        """Take no more requests; what was taken goes on."""
        self._draining = True

    def stop(self) -> None:
        """Give up what runs after the step that it is in, telling its clients; nothing is computed afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.stop()
        self._thread.join()

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._leavers.append(ticket)
            self._changed.notify()

    def _serve(self) -> None:
        """The engine's thread."""
        try:
            while not self._closed:
                self._take_requests()
                if self._places:
                    self._step()
            self._abandon(StoppedError("the server stopped before this was finished"))
        except BaseException as error:
            self._fail(error)

    def _take_requests(self) -> None:
        """Add what came and cancel what was given up; wait where there is nothing else to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrivals or self._leavers or self._closed or self._places)
            arrivals, leavers = list(self._arrivals), list(self._leavers)
            self._arrivals.clear()
            self._leavers.clear()
        for ticket in arrivals:
            for index, sequence in enumerate(ticket.sequences):
                self._places[sequence] = ticket, index
            try:
                for sequence in ticket.sequences:
                    self.engine.add(sequence)
            except UserError as error:
                ticket.failure = error
                self._drop(ticket.sequences)
        for ticket in leavers:
            self._drop(ticket.sequences)

    def _step(self) -> None:
        try:
            advanced = self.engine.step()
        except UserError as error:  # of a step as a whole; others may go well
            self._failed_steps += 1
            if self._failed_steps == MOST_FAILED_STEPS:
                raise
            self._abandon(error)
            return
        self._failed_steps = 0
        self._watchers[0](advanced)
        changed: dict[Ticket, None] = {}
        for sequence in advanced:
            ticket, index = self._places[sequence]
            if ticket.progress or sequence.finish_reason is not None:
                ticket.update(index)
                changed[ticket] = None
            if sequence.finish_reason is not None:
                self._forget(sequence)
        _tell(changed)

    def _drop(self, sequences: Iterable[TokenSequence]) -> None:
        """Cancel those of the sequences that have not ended."""
        changed: dict[Ticket, None] = {}
        for sequence in list(sequences):
            if sequence in self._places:
                self.engine.cancel(sequence)
                ticket, index = self._places[sequence]
                ticket.update(index)
                changed[ticket] = None
                self._forget(sequence)
                self._watchers[1]([sequence])
        _tell(changed)

    def _forget(self, sequence: TokenSequence) -> None:
        del self._places[sequence]
        with self._changed:
            self._outstanding -= 1
            now, last = time.perf_counter(), self._last_end
            self._last_end = now if self._outstanding >= self.slots else None
            if last is not None:
                self._pause += RECENT * (now - last - self._pause)

    def _fail(self, error: BaseException) -> None:
        """Nothing is computed any more, and everyone is told so."""
        with self._changed:
            self.failure = error
        self._lose(error, self._refused())

    def _abandon(self, error: BaseException) -> None:
        """Give back what sequences hold, and tell their clients."""
        for sequence in self._places:
            self.engine.cancel(sequence)
        self._lose(error, self._refused() if self._closed else ())

    def _refused(self) -> list[Ticket]:
        """Those that came and will not be computed."""
        with self._changed:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
        return arrivals

    def _lose(self, error: BaseException, refused: Iterable[Ticket]) -> None:
        lost = {ticket for ticket, _ in self._places.values()}
        with self._changed:
            self._outstanding -= len(self._places) + sum(len(ticket.sequences) for ticket in refused)
        self._watchers[1](self._places.keys())
        self._places.clear()
        lost.update(refused)
        for ticket in lost:
            ticket.failure = error
        _tell(lost)


def _nobody(sequences: Collection[TokenSequence]) -> None:
    """Watches nothing."""


def _tell(tickets: Iterable[Ticket]) -> None:
    """Have event loops look at tickets that changed: one call for all, and none for those who will look anyway."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        if not ticket.told:
            ticket.told = True
            by_loop.setdefault(ticket.loop, []).append(ticket)
    for loop, fresh in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is there to be told
            loop.call_soon_threadsafe(_look, fresh)


def _look(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.look()
