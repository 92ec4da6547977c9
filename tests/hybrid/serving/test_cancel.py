"""Clients that leave, readers that are slow, more requests than there is room for."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

LONG = {"model": "demo", "prompt": "def f(", "max_tokens": 400, "ignore_eos": True}
PATIENCE = 120.0


@pytest.fixture(scope="module")
def slow(demo, serving):
    """A server whose engine takes its time: two slots, one more may wait, steps of 20 ms."""
    from hybrid.stages.opening import open_engine

    with open_engine(demo, max_sequences=2, threads=1) as engine:
        step = engine.step
        engine.step = lambda: (time.sleep(0.02), step())[1]
        with serving(engine, queue=1, keep_alive_seconds=0.2) as running:
            yield running


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def raw(running, body):
    """A connection on which a request was sent and nothing was read."""
    host, port = running.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_gives_slot_and_pages_back(slow, settled, stream):
    used = settled(slow.service).pages_used
    connection = raw(slow, {**LONG, "stream": stream, "n": 2})
    until(lambda: slow.service.engine.load().running == 2)
    connection.close()
    load = settled(slow.service)
    assert load.running == load.waiting == 0 and load.pages_used == used


def test_who_leaves_while_waiting_is_never_computed(slow, settled):
    running = raw(slow, {**LONG, "n": 2})
    until(lambda: slow.service.engine.load().running == 2)
    waiting = raw(slow, LONG)
    until(lambda: slow.service.outstanding == 3)
    waiting.close()
    until(lambda: slow.service.outstanding == 2)
    assert slow.service.engine.load().running == 2
    running.close()
    settled(slow.service)


def test_closing_a_stream_of_openais_client_cancels_it(slow, settled):
    with slow.client() as client:
        stream = client.completions.create(model="demo", prompt="def f(", max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
    settled(slow.service)


def test_a_full_queue_is_told_with_a_time_to_come_back(slow, settled):
    taken = raw(slow, {**LONG, "n": 3})
    until(lambda: slow.service.outstanding == 3)
    with slow.client() as client, pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(model="demo", prompt="x")
    assert refused.value.code == "queue_full"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 600
    with slow.client(max_retries=4) as patient:  # waits as it was told
        threading.Timer(0.3, taken.close).start()
        assert patient.completions.create(model="demo", prompt="x", max_tokens=1).choices
    settled(slow.service)


def test_more_than_there_is_room_for_ever_is_no_matter_of_time(slow):
    with slow.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo", prompt="x", n=4)
    assert refused.value.param == "n"


def test_a_silent_stream_has_comments(slow, settled):
    blocking = raw(slow, {**LONG, "n": 2})
    until(lambda: slow.service.engine.load().running == 2)
    seen = b""
    body = {**LONG, "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{slow.url}/v1/completions", json=body, timeout=PATIENCE) as answer:
        for part in answer.iter_raw():
            seen += part
            if seen.count(b": still here\n\n") == 2:
                blocking.close()
    assert seen.startswith(b": still here\n\n") and seen.endswith(b"data: [DONE]\n\n")
    settled(slow.service)


def test_a_reader_that_waits_gets_all_of_it_in_fewer_pieces(server, settled):
    connection = raw(server, {**LONG, "stream": True, "stream_options": {"include_usage": True}})
    settled(server.service)  # the engine does not wait for the reader
    connection.settimeout(PATIENCE)
    data = b""
    while b"[DONE]" not in data:
        data += connection.recv(1 << 16)
    connection.close()
    chunks = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    assert chunks[-1]["usage"]["completion_tokens"] == 400
    whole = httpx.post(f"{server.url}/v1/completions", json={**LONG, "temperature": 0}, timeout=PATIENCE).json()
    assert whole["usage"]["completion_tokens"] == 400


def test_a_crowd_that_leaves_midway_leaks_nothing(server, settled):
    """Greedy texts stay what they are alone, whoever comes and goes."""
    alone = httpx.post(f"{server.url}/v1/completions", json=_short(0), timeout=PATIENCE).json()["choices"][0]["text"]
    used, threads = settled(server.service).pages_used, threading.active_count()

    def one(number):
        if number % 3 == 0:
            connection = raw(server, {**LONG, "stream": number % 2 == 0})
            time.sleep(0.01 * (number % 5))
            connection.close()
            return None
        while True:
            answer = httpx.post(f"{server.url}/v1/completions", json=_short(number), timeout=PATIENCE)
            if answer.status_code != 429:
                assert answer.status_code == 200
                return answer.json()["choices"][0]["text"]
            time.sleep(0.02)

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(one, range(48)))
    assert set(texts[1::3]) == {alone}
    load = settled(server.service)
    assert load.running == load.waiting == 0 and load.pages_used == used
    until(lambda: threading.active_count() <= threads + 2)


def _short(number):
    return {"model": "demo", "prompt": "import " if number % 3 < 2 else "class A", "max_tokens": 12, "temperature": 0}


def test_a_client_that_is_cancelled_in_asyncio_cancels_its_request(slow, settled):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{slow.url}/v1", api_key="x", max_retries=0) as client:
            asked = client.completions.create(model="demo", prompt="def f(", max_tokens=400)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asked, 0.3)

    asyncio.run(run())
    assert settled(slow.service).running == 0
