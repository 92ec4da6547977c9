"""GET /live: what the engine does, twice a second, to whoever looks: which neurons fire, how fast, with what memory.

A stream of server-sent events. `about` comes first and tells what stays; each `now` tells what happened since the one
before; `end` is the last, where the server stops. Nothing is looked up while nobody looks, and one look serves all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import anyio
from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hybrid.serving.errors import ApiError, error_response, to_json
from hybrid.serving.look import Look, about, between
from hybrid.serving.service import EngineService
from hybrid.serving.shape import Json

PERIOD = 0.5  # seconds from one look to the next
MOST_VIEWERS = 16
RETRY_SECONDS = 10  # when one more may try again
STALLED_SECONDS = 30  # after which a viewer that takes nothing is given up
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the pieces
]


class LiveView:
    """Looks at a service's engine while somebody is there to be told.

    Args:
        service: whose engine is looked at.
        model: what the model is called.
        most: viewers at once.
        period: seconds from one look to the next.

    """

    def __init__(self, service: EngineService, model: str, most: int = MOST_VIEWERS, period: float = PERIOD) -> None:
        self.service, self.model, self.most, self.period = service, model, most, period
        self.viewers = 0
        self.looks = 0  # since the server began
        self._latest = b""
        self._turn = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One viewer's events, until it is closed or the service ends. A viewer that is slow misses looks."""
        self.viewers += 1
        try:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
            looking = self._looking
            yield _event("about", about(self.service, self.model))
            while not looking.done():
                await self._turn.wait()
                yield self._latest
        finally:
            self.viewers -= 1
            if not self.viewers:
                looking.cancel()

    async def _look(self) -> None:
        try:
            before = Look.at(self.service)
            while self.service.health == "ok":
                await asyncio.sleep(self.period)
                now = Look.at(self.service)
                self.looks += 1
                self._tell(_event("now", between(self.service.engine, before, now)))
                before = now
        finally:
            self._looking = None
            self._tell(_event("end", {"health": self.service.health}))

    def _tell(self, event: bytes) -> None:
        self._latest = event
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()


class Watching(Response):
    """The answer to one viewer, which ends when it leaves."""

    def __init__(self, live: LiveView) -> None:
        self.background = None
        self.live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events, or say that there are too many viewers."""
        if self.live.viewers >= self.live.most:
            told = ApiError(
                429,
                f"{self.live.most} viewers watch the engine already",
                kind="server_error",
                code="too_many_viewers",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
            return await error_response(told)(scope, receive, send)
        async with anyio.create_task_group() as group:
            group.start_soon(_leave, receive, group.cancel_scope)
            with contextlib.suppress(TimeoutError):
                await self._answer(send)
            group.cancel_scope.cancel()
        return None

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async with contextlib.aclosing(self.live.events()) as events:
            async for event in events:
                with anyio.fail_after(STALLED_SECONDS):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _leave(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def live_router(live: LiveView) -> APIRouter:
    """The endpoint. It is not part of the described protocol: its answer does not end."""
    router = APIRouter()

    @router.get("/live", include_in_schema=False)
    async def watch() -> Response:
        """What the engine does, twice a second."""
        return Watching(live)

    return router


def _event(name: str, data: Json) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + to_json(data) + b"\n\n"
