"""A connection with limits: uvicorn's HTTP/1.1 protocol waits for ever for heads, bodies and for clients that read.

Once a second each connection looks at what it has been waiting for, and for how long. Time in which the server itself
stood still is not held against its clients.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from hybrid.serving.errors import ApiError, to_json
from hybrid.serving.settings import Limits

Waiting = Literal["head", "body", "rest", "idle", "stall", "close"]
LOOKS = 4  # in the shortest of the times, and one a second at least
REST_SECONDS = 5.0  # for what a client still sends of a request that was answered, refused mostly
AHEAD_BYTES = 64 << 10  # of further requests that are read before one is answered


class GuardedConnection(H11Protocol):
    """One client's connection; `limited` makes the class with its limits."""

    limits: ClassVar[Limits] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._look: asyncio.TimerHandle | None = None
        self._waiting: tuple[Waiting | None, object] = None, None  # for what, and in which request
        self._waited = self._looked = 0.0  # for so many seconds; when that was seen
        self._received = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, "too many connections; try again later", kind="server_error", code="busy"))
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        if self.transport.is_closing():
            return
        self._received = True
        super().data_received(data)
        if self.flow.read_paused and len(self.conn.trailing_data[0]) < AHEAD_BYTES and not self._has_body_unread():
            self.flow.resume_reading()  # uvicorn stops at a further request, and would not see the client leave

    def on_response_complete(self) -> None:
        """An answer went out; how long the connection may be idle is seen to here."""
        super().on_response_complete()
        self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """h11 refused what the client sent, with a better status than 400 for what is too long."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(ApiError(status, f"this is not a request of HTTP/1.1: {error or msg}"))

    def tell(self, status: int) -> None:
        """What was no request was answered."""

    def _has_body_unread(self) -> bool:
        return self.cycle is not None and bool(self.cycle.body)

    def _refuse(self, error: ApiError) -> None:
        """Answer where an answer is still possible, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever computes the answer stops
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = to_json(error.body())
            fields = {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                "Connection": "close",
                **error.headers,
            }
            response = h11.Response(
                status_code=error.status, headers=list(fields.items()), reason=STATUS_PHRASES[error.status]
            )
            self.tell(error.status)
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look_later(self) -> None:
        limits = self.limits
        shortest = min(limits.head_seconds, limits.body_seconds, limits.stall_seconds, limits.idle_seconds)
        self._looked, self._pause = self.loop.time(), min(1.0, shortest / LOOKS)
        self._look = self.loop.call_later(self._pause, self._look_now)

    def _look_now(self) -> None:
        waiting = (self._waits_for(), self.cycle)
        if waiting != self._waiting:
            self._waiting, self._waited = waiting, 0.0
        else:
            self._waited += min(self.loop.time() - self._looked, 2 * self._pause)
        if waiting[0] is not None and self._waited >= self._seconds(waiting[0]):
            self._give_up(waiting[0])
        self._look_later()

    def _waits_for(self) -> Waiting | None:
        """What the client is expected to do; None where it is this server's turn."""
        if self.transport.is_closing():
            return "close"
        if self.flow.write_paused:
            return "stall"
        if self.cycle is not None and not self.cycle.response_complete:
            return "body" if self.cycle.more_body else None
        if self.conn.their_state is h11.SEND_BODY:
            return "rest"
        return "head" if self.cycle is None or self.conn.trailing_data[0] else "idle"

    def _seconds(self, waiting: Waiting) -> float:
        limits = self.limits
        seconds = {"head": limits.head_seconds, "body": limits.body_seconds, "idle": limits.idle_seconds}
        return REST_SECONDS if waiting == "rest" else seconds.get(waiting, limits.stall_seconds)

    def _give_up(self, waiting: Waiting) -> None:
        if waiting in ("stall", "close", "rest"):
            self.transport.abort()
        elif waiting == "idle" or not self._received:
            self.transport.close()
        else:
            seconds = self._seconds(waiting)
            self._refuse(ApiError(408, f"the {waiting} of the request took over {seconds:g} s", code="timeout"))


def limited(limits: Limits, refused: Callable[[int], None] = lambda status: None) -> type[GuardedConnection]:
    """The class of connections with these limits; `refused` is told the status of what is no request."""

    class LimitedConnection(GuardedConnection):
        def tell(self, status: int) -> None:
            refused(status)

    LimitedConnection.limits = limits
    return LimitedConnection
