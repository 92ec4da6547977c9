"""`ServeSettings`: how a server behaves, beside how its model was opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiler.artifacts import UserError

LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """How a server behaves.

    model_names: what clients may call the model; the first one is shown. host, port: where it listens; port 0 takes a
    free one. api_keys: those that clients must show one of; none lets everyone in. cors_origins: origins whose pages
    may call, beside those of this machine. queue: requests that may wait while all slots are taken, more get 429.
    keep_alive_seconds: silence in a stream after which a comment is sent. drain_seconds: how long what runs may take
    to end once the server is told to stop. max_body_bytes: of one request.
    """

    model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    queue: int = 64
    keep_alive_seconds: float = 15.0
    drain_seconds: float = 30.0
    max_body_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise UserError("a served model needs a name that is not empty")
        if not 0 <= self.port <= 65535:
            raise UserError(f"port {self.port} does not exist; give 1 to 65535, or 0 for any that is free")
        if self.queue < 0:
            raise UserError(f"a queue of {self.queue} makes no sense; give 0 or more")
        for name in ("keep_alive_seconds", "drain_seconds"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and 0 <= seconds <= 86400):
                raise UserError(f"{name} is {seconds}; a number of seconds from 0 to 86400 is meant")
        if self.keep_alive_seconds == 0:
            raise UserError("keep_alive_seconds is 0; a stream's comments need a pause between them")
        if self.max_body_bytes < 1024:
            raise UserError(f"requests of at most {self.max_body_bytes} bytes hold no prompt; give 1024 or more")

    @property
    def model_name(self) -> str:
        """The name that the model is shown under."""
        return self.model_names[0]
