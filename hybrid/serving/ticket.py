"""`Ticket`: one request's sequences, seen from the event loop while the engine's thread computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid.runtime.sequence import FinishReason
from hybrid.runtime.sequence import Sequence as TokenSequence


@dataclass(frozen=True)
class State:
    """What is known of a sequence after a step: its certain text, how many tokens it has, and why it ended.

    shown: how many of the tokens make up the text.
    """

    text: str
    tokens: int
    shown: int
    finish_reason: FinishReason | None


NOTHING = State("", 0, 0, None)


class Ticket:
    """A request that the engine took.

    The engine's thread replaces `states`, one for each sequence; the event loop reads them when `wait` returns. A
    reader that is slow finds more text in the next state, and nothing is queued for it: what a request holds is bounded
    by its own length. progress: the reader wants to know of every step, not only of the end.
    """

    def __init__(self, sequences: Sequence[TokenSequence], cancel: Callable[[Ticket], None], progress: bool) -> None:
        self.sequences = tuple(sequences)
        self.states = [NOTHING] * len(self.sequences)
        self.failure: BaseException | None = None
        self.cancelled = False
        self.progress = progress
        self.loop = asyncio.get_running_loop()
        self.told = False  # the loop is going to look, whatever happens until then
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None
        self._cancel = cancel

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.failure is not None or all(state.finish_reason is not None for state in self.states)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until something changed since the last call; False where nothing did for so long. One reader waits."""
        if not self._changed:
            assert self._waiter is None, "one reader"
            self._waiter = waiter = self.loop.create_future()
            timer = None if seconds is None else self.loop.call_later(seconds, _release, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        changed, self._changed = self._changed, False
        return changed

    async def end(self) -> None:
        """Wait until nothing more will come."""
        while not self.ended:
            await self.wait()

    def cancel(self) -> None:
        """Give the request up, on the event loop: slots and pages go back before the engine's next step."""
        if not self.cancelled and not self.ended:
            self.cancelled = True
            self._cancel(self)
            self.look()

    def look(self) -> None:
        """On the event loop: something changed."""
        self.told, self._changed = False, True
        if self._waiter is not None:
            _release(self._waiter)

    def update(self, index: int) -> None:
        """On the engine's thread: a sequence got a token, or ended."""
        sequence = self.sequences[index]
        self.states[index] = State(
            sequence.visible_text(), len(sequence.output_ids), sequence.visible_tokens(), sequence.finish_reason
        )


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
