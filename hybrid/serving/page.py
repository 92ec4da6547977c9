"""The page at /: files of the package, read once, with headers that let nothing else be loaded or run."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("static")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Only what this server has itself, no script or style within markup, and no markup made of text by a script.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 where nothing changed
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class StaticFile:
    """A file's bytes, its content type, and a name for just these bytes."""

    body: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, path: Path) -> StaticFile:
        """Read it."""
        body = path.read_bytes()
        return cls(body, TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """The file, or that the client has it."""
        headers = {**HEADERS, "ETag": self.tag}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def static_files() -> Mapping[str, StaticFile]:
    """Every file of the page by its path below `static/`: what is not listed here is not served."""
    paths = [path for path in FOLDER.rglob("*") if path.suffix in TYPES]
    return {path.relative_to(FOLDER).as_posix(): StaticFile.of(path) for path in sorted(paths)}


def page_router() -> APIRouter:
    """The page and its parts."""
    router = APIRouter()

    for path, file in static_files().items():
        where = "/" if path == "index.html" else f"/static/{path}"
        router.add_route(where, _endpoint(file), methods=["GET"], include_in_schema=False)
    return router


def _endpoint(file: StaticFile) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return file.answer(request)

    return answer
