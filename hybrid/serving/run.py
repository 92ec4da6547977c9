"""Runs the application with uvicorn, and stops it so that what runs is finished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hybrid.serving.connection import limited
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from profiler.artifacts import UserError

LOOK_SECONDS = 0.05  # between looks at whether what runs has ended


def bind(settings: ServeSettings) -> socket.socket:
    """A socket at the server's address, taken before a model is opened for minutes; who connects meanwhile waits.

    Raises:
        UserError: the address is taken, or is none of this machine's.
    """
    where = f"{settings.host} port {settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # of `localhost`
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{where} cannot be listened at: {error.strerror or error}; give another --host") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1)  # of two servers that are started together, one is told now
    except OSError as error:
        bound.close()
        raise UserError(f"{where} cannot be listened at: {error.strerror or error}; give another --port") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


class GracefulServer(uvicorn.Server):
    """A server that answers with 503 while what runs is finished, and ends then.

    The first SIGTERM or SIGINT begins that, the second ends the process at once, with 128 and its number.
    """

    def __init__(self, config: uvicorn.Config, service: EngineService, drain_seconds: float) -> None:
        super().__init__(config)
        self.service, self.drain_seconds = service, drain_seconds
        self._told = False  # to end
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._told:
            os._exit(128 + sig)  # nothing is written to disk, and a step may take seconds
        self._told = True
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: begin to drain where a signal asked for it."""
        if self._told and self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers be read to their ends, within the time that is left."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of those who do not read, nothing more is told
        await super().shutdown(sockets)

    async def _finish(self) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + self.drain_seconds
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended(), self.drain_seconds)
        self.service.stop()
        self.config.timeout_graceful_shutdown = max(1, math.ceil(until - clock()))
        self.should_exit = True

    async def _ended(self) -> None:
        while self.service.outstanding:
            await asyncio.sleep(LOOK_SECONDS)


def make_server(app: FastAPI, service: EngineService, settings: ServeSettings) -> GracefulServer:
    """The server of an application that `create_app` made, not yet running; h11 parses requests."""
    config = uvicorn.Config(
        app,
        http=limited(settings.limits, app.state.metrics.refused),
        h11_max_incomplete_event_size=settings.limits.head_bytes,
        ws="none",
        lifespan="off",
        log_level="error",  # every request that makes no sense would be a line
        access_log=False,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    return GracefulServer(config, service, settings.drain_seconds)


def serve(app: FastAPI, service: EngineService, settings: ServeSettings, bound: socket.socket) -> None:
    """Serve until a signal ends it: then what ran was finished, or its time was up."""
    make_server(app, service, settings).run(sockets=[bound])
