"""The ASGI application: routes, and errors as OpenAI has them."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hybrid.serving.completions import completions_router
from hybrid.serving.errors import ApiError, JsonResponse, error_response, invalid
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from profiler.artifacts import UserError


def create_app(service: EngineService, settings: ServeSettings) -> FastAPI:
    """The server's application; guard, page and metrics are added around and beside these routes."""
    app = FastAPI(title="hybrid", docs_url=None, redoc_url=None)
    app.include_router(completions_router(service))

    @app.get("/health")
    async def health() -> Response:
        state = service.health
        return JsonResponse({"status": state}, status_code=200 if state == "ok" else 503)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return error_response(invalid(str(error)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:2])
        return error_response(invalid(f"{place}: {first['msg']}" if place else first["msg"], place or None))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return error_response(ApiError(error.status_code, str(error.detail), headers=error.headers))

    return app
