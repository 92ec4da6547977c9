"""Answers that cannot be computed to their end: what their clients see, and nobody else."""

import weakref

import openai
import pytest

from hybrid.runtime.sampler import NumericalError, Sampler

DOOMED = 666  # the seed of requests whose fourth token cannot be computed
OPTIONS = {"model": "demo", "prompt": "def f(", "max_tokens": 10}


@pytest.fixture(autouse=True)
def doom(monkeypatch):
    picks, pick = weakref.WeakKeyDictionary(), Sampler.pick

    def pick_or_fail(sampler, logits):
        picks[sampler] = picks.get(sampler, 0) + 1
        if sampler.params.seed == DOOMED and picks[sampler] == 4:
            raise NumericalError("logits are not finite numbers")
        return pick(sampler, logits)

    monkeypatch.setattr(Sampler, "pick", pick_or_fail)


def test_one_that_is_sent_whole_is_an_error(client, server, settled):
    with pytest.raises(openai.InternalServerError, match="not finite") as failed:
        client.completions.create(**OPTIONS, seed=DOOMED, n=2)
    assert failed.value.code == "computation_failed" and failed.value.type == "server_error"
    assert client.completions.create(**OPTIONS).usage.completion_tokens == 10
    assert settled(server.service).running == 0


def test_a_stream_ends_with_an_error_after_what_was_said(client, server, settled):
    pieces = []
    with pytest.raises(openai.APIError, match="not finite"):
        for chunk in client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "x"}], max_tokens=10, seed=DOOMED, stream=True
        ):
            pieces.append(chunk.choices[0])
    assert pieces[0].delta.role == "assistant" and all(piece.finish_reason is None for piece in pieces)
    assert settled(server.service).running == 0


def test_a_fault_of_the_server_is_told_without_its_details(server, http, monkeypatch):
    monkeypatch.setattr(server.service, "submit", lambda *sequences, progress: 1 / 0)
    answer = http.post("/v1/completions", json=OPTIONS)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error" and "division" not in answer.text
