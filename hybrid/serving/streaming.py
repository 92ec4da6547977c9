"""`StreamReply`: server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from starlette.types import Send

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.errors import to_json
from hybrid.serving.reply import Reply, failure_of
from hybrid.serving.service import EngineService
from hybrid.serving.shape import Json, Shape
from hybrid.serving.ticket import NOTHING, State, Ticket

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the pieces
]
COMMENT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


class StreamReply(Reply):
    """Pieces as they become certain, a comment in every silence, an error event where something fails.

    A reader that is slow stops the sending (the server waits for its socket), not the engine: what came meanwhile is
    sent as one piece then.
    """

    progress = True

    def __init__(
        self,
        service: EngineService,
        sequences: Sequence[TokenSequence],
        shape: Shape,
        include_usage: bool,
        keep_alive_seconds: float,
    ) -> None:
        super().__init__(service, sequences, shape)
        self.include_usage, self.keep_alive_seconds = include_usage, keep_alive_seconds
        head = to_json({**shape.head(shape.piece), "choices": []})
        self._before = b"data: " + head[: -len(b"]}")]
        self._after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._seen: list[State | None] = [None] * len(sequences)

    async def answer(self, ticket: Ticket, send: Send) -> None:
        """See `Reply`."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        clock = asyncio.get_running_loop().time
        sent = clock()
        while not ticket.cancelled:
            ended = ticket.ended  # before its states are read
            events = b"".join(map(self._event, self._choices(ticket)))
            if ended:
                events += self._last(ticket)
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": not ended})
                sent = clock()
            if ended:
                return
            while not await ticket.wait(max(0.0, sent + self.keep_alive_seconds - clock())):
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                sent = clock()

    def _choices(self, ticket: Ticket) -> Iterator[Json]:
        """What is new of every sequence, in order."""
        shape = self.shape
        for index, (sequence, now) in enumerate(zip(self.sequences, ticket.states, strict=True)):
            before = self._seen[index]
            if now is before or now is NOTHING:
                continue
            if before is None:
                before = NOTHING
                if (opening := shape.opening(index, sequence)) is not None:
                    yield opening
            self._seen[index] = now
            if len(now.text) > len(before.text) or (shape.with_logprobs and now.shown > before.shown):
                yield shape.delta(index, sequence, before, now)
            if now.finish_reason in ("stop", "length"):  # of others an error tells
                yield shape.ending(index, now)

    def _event(self, choice: Json) -> bytes:
        return self._before + to_json(choice) + self._after

    def _last(self, ticket: Ticket) -> bytes:
        if (failure := failure_of(ticket)) is not None:
            return b"data: " + to_json(failure.body()) + b"\n\n"
        if not self.include_usage:
            return DONE
        usage = self.shape.usage(self.sequences, ticket.states)
        return (
            b"data: " + to_json({**self.shape.head(self.shape.piece), "choices": [], "usage": usage}) + b"\n\n" + DONE
        )
