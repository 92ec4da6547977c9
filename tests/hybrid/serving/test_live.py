"""/live: what viewers are told is what the engine did, and nobody looks where nobody is told."""

import base64
import contextlib
import json
import time

import httpx
import numpy as np
import pytest

from hybrid.serving.live import LiveView
from hybrid.serving.look import Look, between
from hybrid.stages.opening import open_engine

WAIT = 60.0


@pytest.fixture(scope="module")
def telling(demo, serving):
    """A server whose engine counts which neurons fire."""
    with open_engine(demo, max_sequences=4, threads=1, tally=True) as engine, serving(engine) as running:
        yield running


@contextlib.contextmanager
def watching(running):
    """An iterator over (name, data) of events."""
    with httpx.stream("GET", f"{running.url}/live", timeout=WAIT) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield _events(answer.iter_lines())


def _events(lines):
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def unpacked(text, about):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(about["layers"], about["neurons"]["buckets"])


def gone(live):
    until = time.monotonic() + WAIT
    while live.viewers:
        assert time.monotonic() < until, "a viewer never left"
        time.sleep(0.01)


def test_viewers_are_told_what_the_engine_does(telling, client, settled):
    engine, live = telling.service.engine, telling.app.state.live
    with watching(telling) as events:
        name, about = next(events)
        spec = engine.directory.spec
        assert name == "about"
        assert (about["model"], about["mode"], about["slots"]) == ("demo", "predicted", 4)
        assert (about["layers"], about["rows"]) == (spec.n_layers, spec.n_neurons)
        assert about["pages"]["total"] == engine.load().pages_total
        assert (unpacked(about["neurons"]["places"], about) == 1).all()  # all in RAM
        assert about["memory"]["cpu"]["used"] == dict(engine.machine.units["cpu"].used)
        before, tokens = engine.firing(), engine.ledger.decode.tokens
        told = []
        with telling.client() as other:
            other.completions.create(model="demo", prompt="def main(", max_tokens=200, extra_body={"ignore_eos": True})
        settled(telling.service)
        done = engine.ledger.decode.tokens
        for name, now in events:
            assert name == "now"
            told.append(now)
            if now["tokens"]["decode"] == done:
                break
        after = engine.firing()
    assert sum(now["speed"]["decode"] * now["seconds"] for now in told) == pytest.approx(done - tokens, abs=2)
    assert told[-1]["requests"] == {"running": 0, "waiting": 0}
    fired = [unpacked(now["fired"], about) for now in told if now["fired"]]
    shares = after.shares(before)
    assert len(fired) <= 3
    if len(fired) == 1:  # all of it between two looks
        np.testing.assert_allclose(fired[0] / 255, np.sqrt(shares), atol=0.004)
    assert (np.sum(fired, axis=0)[shares > 0.01] > 0).all() and (np.sum(fired, axis=0)[shares == 0] == 0).all()
    rows = next(now["rows"] for now in told if now["rows"])
    assert 0 < rows["cpu"] < spec.n_layers * spec.n_neurons
    assert all(now["resident"] > 10 << 20 for now in told)
    gone(live)


def test_nothing_is_looked_up_while_nobody_looks_and_one_look_serves_all(telling):
    live = telling.app.state.live
    gone(live)
    looks = live.looks
    time.sleep(1.2)
    assert live.looks == looks
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(watching(telling)) for _ in range(5)]
        names = [[next(events)[0] for _ in range(3)] for events in viewers]
        assert names == [["about", "now", "now"]] * 5
        assert live.viewers == 5
        assert live.looks - looks <= 5
    gone(live)


def test_viewers_are_few(telling):
    live = telling.app.state.live
    gone(live)
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(watching(telling)) for _ in range(live.most)]
        assert {next(events)[0] for events in viewers} == {"about"}
        refused = httpx.get(f"{telling.url}/live", timeout=WAIT)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "10"
        assert refused.json()["error"]["code"] == "too_many_viewers"
    gone(live)
    with watching(telling) as events:
        assert next(events)[0] == "about"


def test_an_engine_that_counts_nothing_tells_the_rest(server):
    with watching(server) as events:
        _, about = next(events)
        name, now = next(events)
    assert about["neurons"] is None
    assert name == "now" and now["fired"] is None and now["pages"]["used"] >= 0


def test_a_server_that_stops_says_so(demo, serving):
    with open_engine(demo, max_sequences=1, threads=1) as engine, serving(engine) as running:
        with watching(running) as events:
            assert next(events)[0] == "about"
            running.service.drain()
            name, end = next((name, data) for name, data in events if name != "now")
            assert (name, end["health"]) == ("end", "draining")
            assert list(events) == []
        with watching(running) as events:  # who comes now is told what the model is, and perhaps why there is no more
            assert [name for name, _ in events][:1] == ["about"]


def test_between_looks_at_the_same_time_nothing_happened(telling, settled):
    settled(telling.service)
    look = Look.at(telling.service)
    told = between(telling.service.engine, look, look)
    assert told["speed"] == {"decode": 0, "prompt": 0}
    assert told["rows"] is told["bytes"] is told["fired"] is None
    assert LiveView(telling.service, "demo").viewers == 0
