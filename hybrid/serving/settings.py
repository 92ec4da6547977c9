"""`ServeSettings`: how a server behaves, beside how its model was opened."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field

from profiler.artifacts import UserError

KEY = re.compile(r"[\x21-\x7e]{1,512}")
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")  # as browsers write it


@dataclass(frozen=True)
class Limits:
    """What one request, one connection and all of them may take.

    body_bytes: of a request. json_depth: of lists and objects within each other in one. head_bytes, headers: of a
    request's head, and how many lines. head_seconds: from a connection, or the first byte of a further request on it,
    to the end of the head. body_seconds: from there to the end of the body. stall_seconds: a client that takes no more
    of an answer for so long is cut off. idle_seconds: a connection is kept between requests. connections: at once.
    """

    body_bytes: int = 4 << 20
    json_depth: int = 64
    head_bytes: int = 32 << 10
    headers: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    stall_seconds: float = 60.0
    idle_seconds: float = 30.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name in ("head_seconds", "body_seconds", "stall_seconds", "idle_seconds"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and 0 < seconds <= 86400):
                raise UserError(f"{name} is {seconds}; a number of seconds up to 86400 is meant")
        for name, least in {
            "body_bytes": 1024,
            "json_depth": 8,
            "head_bytes": 1024,
            "headers": 8,
            "connections": 1,
        }.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give {least} or more")


@dataclass(frozen=True)
class ServeSettings:
    """How a server behaves.

    model_names: what clients may call the model; the first one is shown. host, port: where it listens; port 0 takes a
    free one. api_keys: those that clients must show one of; none lets everyone in. cors_origins: origins whose pages
    may call, beside those of this machine; `*` is every one. allowed_hosts: names that clients may call the server by,
    beside those of this machine, as a proxy before it does; without any, all where others than this machine reach it.
    queue: requests that may wait while all slots are taken, more get 429.
    keep_alive_seconds: silence in a stream after which a comment is sent. drain_seconds: how long what runs may take
    to end once the server is told to stop. limits: of requests and connections.
    """

    model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    queue: int = 64
    keep_alive_seconds: float = 15.0
    drain_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)

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
        if not all(KEY.fullmatch(key) for key in self.api_keys):
            raise UserError("an API key is empty, over 512 characters, or has spaces or other than ASCII ones in it")
        for origin in self.cors_origins:
            if ORIGIN.fullmatch(origin) is None:
                raise UserError(f"{origin!r:.80} is not an origin; one like https://example.com:8443 is meant, or *")

    @property
    def model_name(self) -> str:
        """The name that the model is shown under."""
        return self.model_names[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
