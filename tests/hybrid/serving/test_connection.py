"""Clients that are slow, silent, talkative or wrong, on real sockets; the application is a plain one that echoes."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time

import pytest
import uvicorn

from hybrid.serving.connection import limited
from hybrid.serving.limits import RequestLimits
from hybrid.serving.settings import Limits

QUICK = {"head_seconds": 0.4, "body_seconds": 0.4, "stall_seconds": 0.4, "idle_seconds": 0.4}
PATIENCE = 600.0  # of a test, on a machine that does something else meanwhile


class Echo:
    """Answers with the length of the body; `/stream` with bytes until its client leaves, and says that it left."""

    def __init__(self):
        self.left = threading.Event()
        self.begun = 0

    async def __call__(self, scope, receive, send):
        self.begun += 1
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            self.left.set()
            return
        head = {"type": "http.response.start", "status": 200}
        if scope["path"] == "/stream":
            await send({**head, "headers": []})
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            self.left.set()
            return
        if scope["path"] == "/wait":
            await receive()
            self.left.set()
            return
        text = b"%d" % len(body)
        await send({**head, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})


@contextlib.contextmanager
def serving(limits, app):
    """A server on a thread; yields its port and uvicorn's state."""
    config = uvicorn.Config(
        RequestLimits(app, limits),
        port=0,
        http=limited(limits),
        ws="none",
        lifespan="off",
        log_level="critical",
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], server.server_state
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def quick():
    """`(connect, state, app)` with short times: `connect() -> socket`."""
    app = Echo()
    with (
        serving(Limits(**QUICK, body_bytes=4096, connections=6), app) as (port, state),
        contextlib.ExitStack() as stack,
    ):
        yield (
            lambda: stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)),
            state,
            app,
        )


def answers(client):
    """All that comes until the other side closes, or resets."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            content += part
    return content


def statuses(content):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", content)]


def error_of(content):
    return json.loads(content.rpartition(b"\r\n\r\n")[2])["error"]


def settled(state, count=0):
    """Wait until so many connections are left."""
    end = time.monotonic() + PATIENCE
    while len(state.connections) > count or (count == 0 and state.tasks):
        assert time.monotonic() < end, (state.connections, state.tasks)
        time.sleep(0.01)


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_silent_connection_is_closed_without_a_word(quick):
    connect, state, _ = quick
    assert answers(connect()) == b""
    settled(state)


@pytest.mark.parametrize(
    ("sent", "what"),
    [(b"POST / HT", "head"), (POST, "head"), (POST + b"Content-Length: 9\r\n\r\n12", "body")],
)
def test_what_does_not_come_in_time_is_answered_408(quick, sent, what):
    connect, state, app = quick
    client = connect()
    client.sendall(sent)
    content = answers(client)
    assert statuses(content) == [408]
    assert what in error_of(content)["message"]
    settled(state)
    assert app.begun == 0


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\nX-", POST + b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_client_that_sends_a_byte_now_and_then_gets_no_more_time(quick, sent):
    connect, state, _ = quick
    client = connect()
    client.sendall(sent)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(2000):
            client.sendall(b"1\r\na\r\n" if b"chunked" in sent else b"a")
            time.sleep(0.05)
        pytest.fail("still connected")
    settled(state)


def test_a_kept_connection_serves_again_and_is_closed_when_idle(quick):
    connect, state, _ = quick
    client = connect()
    for _ in range(3):
        client.sendall(POST + b"Content-Length: 2\r\n\r\n[]")
        content = b""
        while not content.endswith(b"\r\n\r\n2"):
            content += client.recv(65536)
    assert answers(client) == b""
    settled(state)


def test_the_head_of_a_second_request_has_its_time_too(quick):
    connect, _, _ = quick
    client = connect()
    client.sendall(POST + b"Content-Length: 2\r\n\r\n[]" + POST)
    assert statuses(answers(client)) == [200, 408]


def test_a_client_that_reads_nothing_holds_a_stream_no_longer_than_allowed(quick):
    connect, state, app = quick
    client = connect()
    client.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert app.left.wait(PATIENCE)
    settled(state)


@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", POST])
def test_a_client_that_leaves_is_noticed_also_after_further_requests(quick, more):
    connect, state, app = quick
    client = connect()
    client.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n" + more)
    while not app.begun:
        time.sleep(0.005)
    client.close()
    assert app.left.wait(PATIENCE)
    settled(state)


def test_a_half_closed_connection_counts_as_left(quick):
    connect, state, app = quick
    client = connect()
    client.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    assert app.left.wait(PATIENCE)
    settled(state)


def test_pipelined_requests_are_answered_in_order(quick):
    connect, _, _ = quick
    client = connect()
    client.sendall(b"".join(POST + b"Content-Length: %d\r\n\r\n[%s]" % (n + 2, b" " * n) for n in range(9)))
    content = answers(client)
    assert statuses(content) == [200] * 9
    assert [int(part.partition(b"HTTP")[0]) for part in content.split(b"\r\n\r\n")[1:]] == list(range(2, 11))


def test_more_connections_than_allowed_are_told_so_and_the_others_work(quick):
    connect, state, _ = quick
    clients = [connect() for _ in range(6)]
    while len(state.connections) < 6:
        time.sleep(0.005)
    content = answers(connect())
    assert statuses(content) == [503] and error_of(content)["code"] == "busy"
    clients[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert statuses(clients[0].recv(65536)) == [200]
    settled(state)
    assert connect().sendall(b"") is None


def test_a_body_that_is_refused_is_read_to_its_end_but_not_kept(quick):
    connect, state, app = quick
    client = connect()
    client.sendall(POST + b"Content-Length: 1000000\r\n\r\n")
    time.sleep(0.05)
    client.sendall(b" " * 1_000_000 + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert statuses(answers(client)) == [413, 200]
    settled(state)
    assert app.begun == 1


def test_a_refused_body_without_end_is_cut_off(quick, monkeypatch):
    connect, state, _ = quick
    monkeypatch.setattr("hybrid.serving.connection.REST_SECONDS", 0.4)
    client = connect()
    client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(10_000_000):
            client.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
    settled(state)


WRONG = [
    (b"\x00\xff\x16\x03\x01" * 20 + b"\r\n\r\n", 400),  # a TLS greeting, say
    (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %s\r\n" % (b"y" * 40000) + b"\r\n", 431),
    (b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 2_000_000, 431),
    (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", 400),
    (POST + b"Content-Length: -2\r\n\r\n[]", 400),
    (POST + b"Content-Length: +2\r\n\r\n[]", 400),
    (POST + b"Content-Length: 99999999999999999999\r\n\r\n[]", 413),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
    (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", 400),
    (POST + b"X: a\x00b\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
]


@pytest.mark.parametrize(("sent", "status"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_request_is_refused_with_an_error_object_and_nothing_of_it_is_run(quick, sent, status):
    connect, state, app = quick
    client = connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
        client.sendall(sent)
    content = answers(client)
    if content or len(sent) < 65536:
        assert statuses(content) == [status]
        assert {"message", "type", "param", "code"} == set(error_of(content))
    settled(state)
    assert app.begun == 0
    again = connect()
    again.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert statuses(answers(again)) == [200]
