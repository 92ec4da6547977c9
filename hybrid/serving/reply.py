"""Answers that are computed while their client waits, and given up when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hybrid.runtime.grammar import GrammarError
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.errors import ApiError, invalid, to_json, unavailable
from hybrid.serving.service import BusyError, EngineService, StoppedError, UnavailableError
from hybrid.serving.shape import Shape
from hybrid.serving.ticket import Ticket
from profiler.artifacts import UserError


class Reply(Response):
    """A response whose sequences run while it is sent, and no longer.

    Starlette tells a plain handler nothing of a client that leaves, and a stream only where it is sent to: so the
    connection is watched here, for both. progress: the answer is sent piece by piece.
    """

    progress: ClassVar[bool]

    def __init__(self, service: EngineService, sequences: Sequence[TokenSequence], shape: Shape) -> None:
        self.background = None
        self.service, self.sequences, self.shape = service, sequences, shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit, answer, and cancel what is left."""
        ticket = submit(self.service, self.sequences, self.progress)
        watch = asyncio.create_task(_cancel_on_disconnect(receive, ticket))
        try:
            await self.answer(ticket, send)
        finally:
            ticket.cancel()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    @abstractmethod
    async def answer(self, ticket: Ticket, send: Send) -> None:
        """Send the response; nothing more of it once the ticket is cancelled."""


class WholeReply(Reply):
    """One JSON object, when all is known."""

    progress = False

    async def answer(self, ticket: Ticket, send: Send) -> None:
        """See `Reply`."""
        await ticket.end()
        if ticket.cancelled:
            return
        if (failure := failure_of(ticket)) is not None:
            raise failure
        shape = self.shape
        body = to_json(
            {
                **shape.head(shape.whole),
                "choices": [
                    shape.choice(index, sequence, state)
                    for index, (sequence, state) in enumerate(zip(self.sequences, ticket.states, strict=True))
                ],
                "usage": shape.usage(self.sequences, ticket.states),
            }
        )
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def check_count(service: EngineService, count: int) -> None:
    """Refuse more sequences than could ever run and wait at once.

    Raises:
        ApiError: they are too many.
    """
    if count > service.capacity:
        raise invalid(
            f"{count} completions in one request are more than the {service.capacity} that may run and wait here; "
            "ask for fewer",
            "n",
        )


def submit(service: EngineService, sequences: Sequence[TokenSequence], progress: bool) -> Ticket:
    """Hand sequences to the engine; see `EngineService.submit`.

    Raises:
        ApiError: they are not taken.
    """
    try:
        return service.submit(*sequences, progress=progress)
    except BusyError as error:
        raise ApiError(
            429,
            f"the server is busy: {service.outstanding} completions run or wait; try again later",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(error.retry_seconds)},
        ) from error
    except UnavailableError as error:
        raise unavailable(str(error), "unavailable") from error


def failure_of(ticket: Ticket) -> ApiError | None:
    """What the client is told of a ticket that failed, or one of whose sequences did."""
    error = ticket.failure
    if error is None:
        error = next((s.failure for s in ticket.sequences if s.finish_reason == "error"), None)
    if error is None:
        return None
    if isinstance(error, StoppedError):
        return unavailable(str(error), "unavailable")
    if isinstance(error, GrammarError):
        return invalid(str(error))  # it turned out only with the tokens to be too large
    if isinstance(error, UserError):
        return ApiError(500, str(error), kind="server_error", code="computation_failed")
    return ApiError(500, f"the engine failed: {error}", kind="server_error", code="engine_failed")


async def _cancel_on_disconnect(receive: Receive, ticket: Ticket) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    ticket.cancel()
