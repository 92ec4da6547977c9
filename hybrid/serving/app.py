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
from hybrid.serving.limits import add_limits
from hybrid.serving.live import LiveView, live_router
from hybrid.serving.metrics import Metrics, add_metrics, metrics_router
from hybrid.serving.models import health_router, models_router
from hybrid.serving.page import page_router
from hybrid.serving.security import add_security, is_public
from hybrid.serving.served import ServedModel
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from hybrid.serving.tokens import tokens_router
from hybrid.serving.validation import invalid_request
from profiler.artifacts import UserError

REFUSALS = {413: "The body is too large", 415: "The body is not declared as JSON"}


def create_app(service: EngineService, settings: ServeSettings) -> FastAPI:
    """The server's application.

    Raises:
        UserError: the model's chat template cannot be read.
    """
    app = FastAPI(title="hybrid", docs_url=None, redoc_url=None, redirect_slashes=False)
    served = ServedModel.of(service.engine, settings.model_names)
    generator = Generator(service, served, settings)
    app.state.served = served
    app.state.live = LiveView(service, settings.model_name)
    for router in (
        chat_router(generator),
        completions_router(generator),
        models_router(served),
        tokens_router(generator),
        health_router(service),
        live_router(app.state.live),
        page_router(),
    ):
        app.include_router(router)
    metrics = app.state.metrics = Metrics(service)
    app.include_router(metrics_router(metrics))
    add_limits(app, settings)
    add_security(app, settings)
    add_metrics(app, metrics)  # around all, so that it counts what the others refuse
    _answer_errors(app)
    describe = app.openapi
    app.openapi = lambda: _described(describe())  # type: ignore[method-assign]
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
        path = request.scope["path"][:200]
        messages = {404: f"Invalid URL ({request.method} {path})", 405: f"Not allowed to {request.method} on {path}"}
        message = messages.get(error.status_code, str(error.detail))
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        message = "The server had an error while processing your request"
        return error_response(ApiError(500, message, kind="server_error", code="internal_error"))


def _described(description: dict[str, Any]) -> dict[str, Any]:
    """FastAPI describes an answer that is never given here (what is invalid gets 400), and not those of the guards."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)
            guards = {403: "Pages of others, and other names of the server", **(REFUSALS if method == "post" else {})}
            if not is_public(path):
                guards[401] = "An API key is needed"
            for status, about in guards.items():
                responses[str(status)] = {"description": about, "content": error}
    for name in ("HTTPValidationError", "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(name, None)
    return description
