"""What clients are told of failures: OpenAI's error objects and status codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """A request that is answered with an error object.

    status: of HTTP. kind: the object's `type`. param: the field that is wrong. code: a name that programs read.
    headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class JsonResponse(Response):
    """JSON in ASCII, so that no text of a client's (a lone surrogate, say) is one that cannot be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See Starlette."""
        return to_json(content)


def to_json(value: Any) -> bytes:
    """Compact JSON of plain values."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def error_response(error: ApiError) -> JsonResponse:
    """The answer that an error is."""
    return JsonResponse(error.body(), status_code=error.status, headers=error.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that makes no sense, or asks for what is not supported."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    """A server that takes no requests now."""
    return ApiError(503, message, kind="server_error", code=code)
