"""Who may call: bearer keys, and pages of which origins a browser may call for.

A server on this machine is reached by every page that a browser here shows. Two things keep others' pages out: a page
of another origin is refused whatever it asks for, also what a browser sends without asking first (forms, images), and
a name that somebody pointed at this machine (DNS rebinding) is refused by the `Host` that the browser sends with it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from hybrid.serving.errors import ApiError, error_response
from hybrid.serving.settings import ServeSettings, is_loopback
from profiler.artifacts import UserError

KEYS_VARIABLE = "HYBRID_API_KEYS"
KEY_FILE_LIMIT = 1 << 20  # bytes
LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:[0-9]{1,5})?")
PUBLIC_PATHS = frozenset({"/", "/health", "/favicon.ico"})
PUBLIC_FOLDER = "/static/"


def read_keys(given: Iterable[str], file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Keys from the command line, from a file (one a line, `#` opens a comment) and from HYBRID_API_KEYS (by commas).

    Raises:
        UserError: the file cannot be read or has no key, or is too large.
    """
    keys = list(given)
    if file is not None:
        keys += _keys_in(file)
    keys += [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    return tuple(dict.fromkeys(keys))


def _keys_in(file: Path) -> list[str]:
    try:
        if file.stat().st_size > KEY_FILE_LIMIT:
            raise UserError(f"{file} has over 1 MiB; a file of API keys has one on each line")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API keys in {file} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"{file} has no API key; write one on each line, or leave --api-key-file out")
    return keys


def exposed(settings: ServeSettings) -> str | None:
    """What the user should be warned of, in one line; None where nothing is open that should not be."""
    if "*" in settings.cors_origins and not settings.api_keys:
        return "every web page that is opened on a machine that reaches this server may use it; give --api-key too"
    if is_loopback(settings.host) or settings.api_keys:
        return None
    return (
        f"everyone who reaches {settings.host} port {settings.port} can use this server and read its figures; give "
        "--api-key-file, or leave --host out"
    )


def is_public(path: str) -> bool:
    """Whether a path is served without a key: the page, which knows nothing yet, and whether the server lives."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def add_security(app: Starlette, settings: ServeSettings) -> None:
    """Put the checks around an application; what is added later stands before them."""
    if settings.api_keys:
        app.add_middleware(KeyGuard, keys=settings.api_keys)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=LOCAL_ORIGIN,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After"],
    )
    hosts = settings.allowed_hosts if settings.allowed_hosts or is_loopback(settings.host) else None
    app.add_middleware(PageGuard, origins=settings.cors_origins, hosts=hosts)


class KeyGuard:
    """Lets requests pass that show one of the keys, and those of public paths.

    Only digests are kept, all of them are compared, and each in constant time: neither a message nor the time that an
    answer takes says anything of a key.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode("ascii")) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and not is_public(scope["path"]):
            values = [value for name, value in scope["headers"] if name == b"authorization"]
            if not self.accepts(values):
                response = error_response(_wrong_key(bool(values)))
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def accepts(self, values: list[bytes]) -> bool:
        """Whether these are one Authorization header with one of the keys."""
        scheme, _, key = (values[0] if len(values) == 1 else b"").partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _wrong_key(given: bool) -> ApiError:
    return ApiError(
        401,
        "the API key is wrong" if given else "an API key is needed: send it as `Authorization: Bearer KEY`",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


class PageGuard:
    """Refuses what a browser asks for a page that has no business here.

    Args:
        app: whom it stands before.
        origins: those whose pages may call, beside this machine's and the server's own page; `*` lets all of them.
        hosts: names beside this machine's that a client may call the server by; None does not look at names.

    """

    def __init__(self, app: ASGIApp, origins: Iterable[str], hosts: Iterable[str] | None) -> None:
        self.app = app
        self._origins = frozenset(origins)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            error = self.refusal(Headers(scope=scope), scope["path"])
            if error is not None:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, headers: Headers, path: str) -> ApiError | None:
        """Why a request is refused; None where it is not."""
        if not self.knows_host(headers.get("host", "")):
            message = f"this server is not called {headers['host']!r:.100}; if it should be: --allowed-host NAME"
            return ApiError(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is None:  # of another site's image or link: the page may be linked to
            welcome = headers.get("sec-fetch-site") != "cross-site" or is_public(path) or "*" in self._origins
        else:
            welcome = self.knows_origin(origin.lower(), headers.get("host", "").lower())
        if welcome:
            return None
        message = f"pages of {origin or 'another site'!r:.100} may not use this server; if they should: --cors-origin"
        return ApiError(403, message, code="origin_not_allowed")

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server; HTTP/1.0, which no browser speaks, has none."""
        if self._hosts is None or not host:
            return True
        match = HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].rstrip(".")
        return is_loopback(name) or name in self._hosts

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether pages of an origin may call; `host` is what the browser calls the server, whose own page it may be.

        The scheme is not compared: a proxy before this server may speak TLS.
        """
        if "*" in self._origins or origin in self._origins or re.fullmatch(LOCAL_ORIGIN, origin):
            return True
        return bool(host) and origin.partition("://")[2] == host
