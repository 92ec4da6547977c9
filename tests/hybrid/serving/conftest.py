"""A real server on loopback, once for all tests, and clients of it.

`server` serves the demo model: 4 slots, 6 requests more may wait, a stream is never silent for more than 0.3 s.
`serving(engine, **settings)` is a context manager that starts another one, in a thread of this process. Both are
`Running`: `url`, `service`, `settings`. `client` is openai's, of `server`; `http` is httpx's.
`settled(service)` waits until nothing waits or runs, and returns the engine's load then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from hybrid.runtime.engine import Engine, EngineLoad
from hybrid.serving.app import create_app
from hybrid.serving.run import address_of, bind, make_server
from hybrid.serving.service import EngineService
from hybrid.serving.settings import ServeSettings
from hybrid.stages.opening import open_engine

PATIENCE = 120.0  # seconds, for a machine that stands still for a while


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    service: EngineService
    settings: ServeSettings
    app: FastAPI

    def client(self, **options: Any) -> openai.OpenAI:
        """openai's client of it, which tries once."""
        options = {"api_key": "any", "max_retries": 0, "timeout": PATIENCE, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)


Serving = Callable[..., contextlib.AbstractContextManager[Running]]


@contextlib.contextmanager
def _serving(engine: Engine, **options: Any) -> Iterator[Running]:
    settings = ServeSettings(**{"model_names": ("demo",), "port": 0, **options})
    service = EngineService(engine, settings.queue)
    with bind(settings) as bound:
        app = create_app(service, settings)
        server = make_server(app, service, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Running(address_of(bound), service, settings, app)
        finally:
            service.close()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serving() -> Serving:
    return _serving


@pytest.fixture(scope="session")
def demo_engine(demo: Path) -> Iterator[Engine]:
    """The engine of `server`: ask it for `load()`, and nothing else."""
    with open_engine(demo, max_sequences=4, threads=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(demo_engine: Engine) -> Iterator[Running]:
    names = ("demo", "gpt-of-ours")
    with _serving(demo_engine, model_names=names, queue=6, keep_alive_seconds=0.3) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="session")
def settled() -> Callable[[EngineService], EngineLoad]:
    def wait(service: EngineService) -> EngineLoad:
        until = time.monotonic() + PATIENCE
        while service.outstanding or service.engine.busy:
            assert time.monotonic() < until, "something runs on"
            time.sleep(0.01)
        return service.engine.load()

    return wait
