"""Requests that make no sense, sent to a real server in the same process: answers have to be 200 or errors of 4xx."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from random import Random
from typing import Any

import httpx

from knocks.mutations import damaged_bytes, damaged_json, json_bytes

TOGETHER = 25  # requests that one server is sent
BUSY = (429, 503)
JSON = {"Content-Type": "application/json"}
SCHEMA = {"name": "s", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
COMMON = {
    "model": "model",
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 1,
    "stop": ["x"],
    "n": 1,
    "stream": False,
    "logit_bias": {"5": 1.0},
    "presence_penalty": 0.1,
}
CHAT = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
GOOD: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/completions": (
        {**COMMON, "prompt": "def f("},
        {**COMMON, "prompt": ["a", "b"], "logprobs": 2, "echo": True},
        {"model": "model", "prompt": [5, 6], "max_tokens": 2, "regex": "[0-9]{1,3}"},
        {"model": "model", "prompt": "a", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "/v1/chat/completions": (
        {**COMMON, "messages": CHAT},
        {"model": "model", "messages": CHAT, "max_tokens": 2, "logprobs": True, "top_logprobs": 2},
        {
            "model": "model",
            "messages": CHAT,
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        },
        {"model": "model", "messages": CHAT, "max_tokens": 2, "grammar": 'start: "a" | "b"'},
    ),
    "/tokenize": ({"prompt": "a"}, {"messages": CHAT}),
    "/detokenize": ({"tokens": [5, 6]},),
}
HEADERS = (
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=latin-1"},
    {"Content-Encoding": "gzip"},
    {"Authorization": "Bearer " + "x" * 3000},
    {"Origin": "http://evil.example"},
    {"Host": "evil.example"},
    {"X-Request-Id": "a" * 5000},
    {"Accept": "text/event-stream"},
)


def damaged_request(rng: Random) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body."""
    path = rng.choice(tuple(GOOD))
    value = copy.deepcopy(rng.choice(GOOD[path]))
    body = damaged_bytes(json_bytes(value), rng) if rng.random() < 0.25 else json_bytes(damaged_json(value, rng))
    method, headers = "POST", dict(JSON)
    if rng.random() < 0.08:
        headers |= rng.choice(HEADERS)
    if rng.random() < 0.05:
        method = rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"))
    if rng.random() < 0.03:
        path = rng.choice(("/", "/v1", "/v1/models/x", "/v1/../metrics", "/%00", "/health/" + "a" * 2000, "/live"))
    return method, path, headers, body


def send_requests(model: Path, rng: Random) -> None:
    """Start a server, send it requests, and see that it still answers after each that was not answered well.

    Raises:
        AssertionError: an answer is none that a client should get.
    """
    from hybrid.serving.app import create_app
    from hybrid.serving.run import address_of, bind, make_server
    from hybrid.serving.service import EngineService
    from hybrid.serving.settings import ServeSettings
    from hybrid.stages.opening import open_engine

    settings = ServeSettings(model_names=("model",), port=0)
    with open_engine(model, max_sequences=2, threads=1) as engine, bind(settings) as bound:
        service = EngineService(engine, settings.queue)
        server = make_server(create_app(service, settings), service, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        with httpx.Client(base_url=address_of(bound), timeout=40) as client:
            for _ in range(TOGETHER):
                method, path, headers, body = damaged_request(rng)
                _check(client, method, path, headers, body)
            _check(client, "POST", "/v1/completions", JSON, json.dumps({**COMMON, "prompt": "a"}).encode(), (200,))
        service.close()
        server.should_exit = True
        thread.join()


def _check(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], body: bytes, expected: tuple[int, ...] = ()
) -> None:
    answer = client.request(method, path, headers=headers, content=body)
    shown = f"{method} {path} {headers} {body[:500]!r}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code in (expected or (*range(200, 500), *BUSY)), shown
    assert len(answer.content) < 200_000, shown
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.json()["error"]["message"], shown
