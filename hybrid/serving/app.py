"""The ASGI application: routes, and errors as OpenAI has them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hybrid.serving.chat import chat_router
from hybrid.serving.completions import completions_router
from hybrid.serving.errors import ApiError, error_response, invalid
from hybrid.serving.generate import Generator
from hybrid.serving.models import health_router, models_router
from hybrid.serving.served import ServedModel
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from hybrid.serving.tokens import tokens_router
from hybrid.serving.validation import invalid_request
from profiler.artifacts import UserError


def create_app(service: EngineService, settings: ServeSettings) -> FastAPI:
    """The server's application.

    Raises:
        UserError: the model's chat template cannot be read.
    """
    app = FastAPI(title="hybrid", docs_url=None, redoc_url=None)
    served = ServedModel.of(service.engine, settings.model_names)
    generator = Generator(service, served, settings)
    app.state.served = served
    for router in (
        chat_router(generator),
        completions_router(generator),
        models_router(served),
        tokens_router(generator),
        health_router(service),
    ):
        app.include_router(router)
    _answer_errors(app)
    describe = app.openapi
    app.openapi = lambda: _without_422(describe())  # type: ignore[method-assign]
    return app


def _answer_errors(app: FastAPI) -> None:
    """Have every error be told as OpenAI tells it."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return error_response(invalid(str(error)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(invalid_request(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"Invalid URL ({request.method} {request.url.path[:200]})",
            405: f"Not allowed to {request.method} on {request.url.path[:200]}",
        }
        message = messages.get(error.status_code, str(error.detail))
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        message = "The server had an error while processing your request"
        return error_response(ApiError(500, message, kind="server_error", code="internal_error"))


def _without_422(description: dict[str, Any]) -> dict[str, Any]:
    """FastAPI describes an answer that is never given here: what is invalid gets 400."""
    for path in description["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(name, None)
    return description
