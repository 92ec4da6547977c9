"""GET /metrics: what the server did and how the hybrid does, for Prometheus.

What happens to requests is counted as it happens (`Metrics`, told by the service on the engine's thread and by the
application on the event loop); what the engine knows anyway is read when somebody asks (`engine_metrics`). Every label
has a few known values: a path, a status or a name that a client made up makes no series.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from fastapi import APIRouter, FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.serving.engine_metrics import EngineCollector
from hybrid.serving.service import EngineService

OTHER = "other"  # paths that are none of the server's
CONNECTION = "connection"  # refused before it was a request
LEFT = "499"  # the client left before it was answered; nginx's number
WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WINDOW_SECONDS = 10  # of tokens per second


class Metrics:
    """What happened to requests. The service tells what sequences do, on one thread; the rest may come from any."""

    def __init__(self, service: EngineService) -> None:
        self.registry = CollectorRegistry()
        self._seen: dict[TokenSequence, tuple[int, float]] = {}  # output tokens so far, and when the last one came
        self._recent: deque[tuple[int, int]] = deque(maxlen=WINDOW_SECONDS + 1)  # second, and tokens in it
        self._requests = Counter(
            "hybrid_http_requests",
            "Requests answered, by endpoint and status; 499: the client left first.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self._ended = Counter(
            "hybrid_completions", "Completions that ended, by why.", ["finish_reason"], registry=self.registry
        )
        for reason in ("stop", "length", "cancelled", "error"):
            self._ended.labels(reason)
        self._output = Counter("hybrid_output_tokens", "Tokens generated.", registry=self.registry)
        self._queue = self._histogram("queue", "From a request to its first part in a step.", WAITS)
        self._first = self._histogram("time_to_first_token", "From a request to its first token.", WAITS)
        self._between = self._histogram("inter_token", "Between two tokens of a completion.", TOKENS)
        self._whole = self._histogram("completion", "From a request to the end of its completion.", WHOLE)
        rate = Gauge(
            "hybrid_output_tokens_per_second",
            f"Tokens generated in each of the last {WINDOW_SECONDS} seconds, on average.",
            registry=self.registry,
        )
        rate.set_function(lambda: self.tokens_per_second(time.monotonic()))
        self.registry.register(EngineCollector(service))
        service.watch(self.advanced, self.ended)

    def advanced(self, sequences: Iterable[TokenSequence]) -> None:
        """A step gave tokens to sequences, or ended them; on the engine's thread."""
        now, tokens = time.perf_counter(), 0
        for sequence in sequences:
            before, last = self._seen.get(sequence, (0, None))
            count = len(sequence.output_ids)
            tokens += count - before
            if last is not None:
                self._between.observe(now - last)
            elif sequence.first_token_seconds is not None and sequence.queue_seconds is not None:
                self._queue.observe(sequence.queue_seconds)
                self._first.observe(sequence.first_token_seconds)
            self._seen[sequence] = count, now
            if sequence.finish_reason is not None:
                self.ended([sequence])
        if tokens:
            self._output.inc(tokens)
            self._count_recent(int(time.monotonic()), tokens)

    def ended(self, sequences: Iterable[TokenSequence]) -> None:
        """Sequences are over; on the engine's thread."""
        now = time.perf_counter()
        for sequence in sequences:
            self._seen.pop(sequence, None)
            self._ended.labels(sequence.finish_reason or "error").inc()
            self._whole.observe(now - sequence.began)

    def request(self, endpoint: str, status: str) -> None:
        """A request was answered."""
        self._requests.labels(endpoint, status).inc()

    def refused(self, status: int) -> None:
        """A connection was refused before it became a request."""
        self.request(CONNECTION, str(status))

    def tokens_per_second(self, now: float) -> float:
        """Of the last whole seconds before `now`, of time.monotonic."""
        second = int(now)
        recent = list(self._recent)
        return sum(tokens for at, tokens in recent if second - WINDOW_SECONDS <= at < second) / WINDOW_SECONDS

    def answer(self, accept: str) -> Response:
        """All figures, in the format of Prometheus that the client asks for."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(self.registry), headers={"Content-Type": content_type})

    def _count_recent(self, second: int, tokens: int) -> None:
        if self._recent and self._recent[-1][0] == second:
            tokens += self._recent.pop()[1]
        self._recent.append((second, tokens))

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"hybrid_{name}_seconds", about, buckets=buckets, registry=self.registry)


def metrics_router(metrics: Metrics) -> APIRouter:
    """The endpoint; in a thread, since it reads the engine while the event loop goes on."""
    router = APIRouter(tags=["server"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def read(request: Request) -> Response:
        """Figures of the server, for Prometheus."""
        return metrics.answer(request.headers.get("accept", ""))

    return router


def add_metrics(app: FastAPI, metrics: Metrics) -> None:
    """Count what an application answers; what is added later stands before."""
    app.add_middleware(CountedRequests, metrics=metrics, application=app)


class CountedRequests:
    """Counts requests by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, application: FastAPI) -> None:
        self.app, self.metrics, self._application = app, metrics, application
        self._paths: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except BaseException:
            status = "500" if status == LEFT else status
            raise
        finally:
            self.metrics.request(self._endpoint(scope), status)

    def _endpoint(self, scope: Scope) -> str:
        """The path as it was declared, with the names of its parts; of what was refused before, where it led to."""
        route = scope.get("route")
        if isinstance(route, Route):
            return route.path_format
        return scope["path"] if scope["path"] in self._declared() else OTHER

    def _declared(self) -> frozenset[str]:
        if self._paths is None:
            self._paths = frozenset(self._application.openapi()["paths"])
        return self._paths
