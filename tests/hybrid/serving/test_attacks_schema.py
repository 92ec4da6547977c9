"""Schemathesis over the server's own description: every answer is one that it describes, and the server lives."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ALIVE = {"model": "demo", "prompt": "a", "max_tokens": 1}
MOST_TOKENS = 4
PATIENCE = 120


@pytest.fixture(scope="module")
def description(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def attack(description, path, mode, examples):
    for operation in description[path].values():
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing of it could be wrong

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case):
            body = case.body
            if isinstance(body, dict) and path.startswith("/v1/"):
                body["model"] = "demo" if mode is GenerationMode.POSITIVE else body.get("model", "demo")
                for name in ("max_tokens", "max_completion_tokens"):  # what is drawn is often the whole context
                    if isinstance(body.get(name), int):
                        body[name] = min(body[name], MOST_TOKENS)
                if not {"max_tokens", "max_completion_tokens"} & set(body):
                    body["max_tokens"] = MOST_TOKENS
            case.call_and_validate(checks=CHECKS, timeout=PATIENCE)

        run()


def everything(server):
    """All paths of the description; those beside the protocol's own are added by other parts."""
    return sorted(httpx.get(f"{server.url}/openapi.json").json()["paths"])


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_described(server, description, mode):
    paths = everything(server)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/health", "/metrics"} <= set(paths)
    for path in paths:
        if path != "/live":  # which has no end
            attack(description, path, mode, 12)
    assert httpx.post(f"{server.url}/v1/completions", json=ALIVE, timeout=PATIENCE).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_many_answers_are_as_described(server, description, settled, path, mode):
    attack(description, path, mode, 300)
    assert httpx.post(f"{server.url}/v1/completions", json=ALIVE, timeout=PATIENCE).status_code == 200
    load = settled(server.service)
    assert load.running == load.waiting == 0
