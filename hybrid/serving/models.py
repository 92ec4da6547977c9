"""GET /v1/models and GET /health."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from hybrid.serving.answers import ErrorAnswer, Health, ModelList, ModelObject
from hybrid.serving.errors import JsonResponse
from hybrid.serving.served import ServedModel
from hybrid.serving.service import EngineService
from hybrid.serving.shape import Json


def models_router(served: ServedModel) -> APIRouter:
    """The endpoints."""
    router = APIRouter(tags=["models"])

    def told(name: str) -> Json:
        about = {"object": "model", "created": served.created, "owned_by": "hybrid", "max_model_len": served.context}
        return {"id": name, **about}

    @router.get("/v1/models", response_model=ModelList)
    async def list_models() -> Response:
        """The model, under each of its names."""
        return JsonResponse({"object": "list", "data": [told(name) for name in served.names]})

    @router.get("/v1/models/{name:path}", response_model=ModelObject, responses={404: {"model": ErrorAnswer}})
    async def get_model(name: str) -> Response:
        """One name of the model."""
        served.require(name)
        return JsonResponse(told(name))

    return router


def health_router(service: EngineService) -> APIRouter:
    """The endpoint."""
    router = APIRouter(tags=["server"])

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        """Whether requests are taken."""
        state = service.health
        message = None if service.failure is None else str(service.failure)
        return JsonResponse({"status": state, "message": message}, status_code=200 if state == "ok" else 503)

    return router
