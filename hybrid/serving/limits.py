"""What a request may be, before anything else reads it: size, headers, depth of its JSON, its encoding."""

from __future__ import annotations

import re

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybrid.serving.errors import ApiError, error_response, invalid
from hybrid.serving.settings import Limits, ServeSettings
from profiler.artifacts import format_size

BODIES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
JSON_TYPE = re.compile(r"application/([a-z0-9.-]+\+)?json")
LARGE_BODY = 128 << 10
CLOSE = {"Connection": "close"}
STRUCTURE = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)  # matches whatever it meets: never goes back


def add_limits(app: Starlette, settings: ServeSettings) -> None:
    """Put the limits around an application; what is added later stands before them."""
    app.add_middleware(RequestLimits, limits=settings.limits)


class RequestLimits:
    """Reads the body of a request, whatever its client says of the length, and hands on one that is within limits.

    A body has to be declared as JSON: others a browser sends for any page without asking the server first.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_head(scope)
            body = await self._body(receive) if scope["method"] in BODIES else b""
            if body is None:  # the client left
                return
            if body:
                check_type(Headers(scope=scope).get("content-type", ""))
                if len(body) > LARGE_BODY:  # a hundred milliseconds, in which streams would stand still
                    await run_in_threadpool(check_json, body, self.limits.json_depth)
                else:
                    check_json(body, self.limits.json_depth)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, _replayed(body, receive) if scope["method"] in BODIES else receive, send)

    def _check_head(self, scope: Scope) -> None:
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(505, "this server speaks HTTP/1.1", headers=CLOSE)
        if len(scope["headers"]) > self.limits.headers:
            raise ApiError(431, f"a request has at most {self.limits.headers} headers", code="too_many_headers")
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if target + sum(len(name) + len(value) for name, value in scope["headers"]) > self.limits.head_bytes:
            raise ApiError(431, f"a request's head has at most {self.limits.head_bytes} bytes", code="head_too_large")
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers and "content-length" in headers:
            # Whoever stands before this server may have believed the other one (request smuggling).
            raise ApiError(400, "a request has Content-Length or Transfer-Encoding, not both", headers=CLOSE)
        if scope["method"] in BODIES and length.isdecimal() and int(length) > self.limits.body_bytes:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"a request has at most {format_size(self.limits.body_bytes)}; shorten it", code="request_too_large"
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return first.pop() if first else await receive()

    return next_message


def check_type(content_type: str) -> None:
    """Refuse a body that is not declared as JSON.

    Raises:
        ApiError: 415.
    """
    if JSON_TYPE.fullmatch(content_type.partition(";")[0].strip().lower()) is None:
        shown = f"not {content_type!r:.80}" if content_type else "which this request does not say"
        raise ApiError(415, f"the body's Content-Type has to be application/json, {shown}", code="not_json")


def check_json(body: bytes, depth: int) -> None:
    """Refuse what is not UTF-8, or is nested more deeply than any request has to be; other mistakes are found later.

    Raises:
        ApiError: 400.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 text: {error.reason} at byte {error.start}", code="not_utf8") from error
    if body.count(b"[") + body.count(b"{") <= depth:
        return
    level = 0
    for match in STRUCTURE.finditer(body):
        bracket = match[0]
        if bracket in b"[{":
            level += 1
            if level > depth:
                raise invalid(f"the body has lists and objects nested more than {depth} deep", code="too_deep")
        elif bracket in b"]}":
            level -= 1
