"""`hybrid serve` as a process: how it starts, and how it ends."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

PATIENCE = 120.0
STARTED = re.compile(
    r"(http://\S+)/v1 serves (\S+): (\w+) mode, 2 slots of 512 tokens, [0-9.]+ \w+ for keys and values"
)


@pytest.fixture
def start(demo):
    """`start(*options) -> (process, its URL)`: 2 slots, any free port, and `lines` that it wrote to stderr."""
    processes = []

    def run(*options):
        command = [sys.executable, "-m", "hybrid.cli", "serve", str(demo), "--port", "0", "--slots", "2"]
        command += ["--threads", "1", "--keep-alive-seconds", "600", *map(str, options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        for line in process.stderr:
            if found := STARTED.match(line):
                return process, found[1]
        raise AssertionError(f"it ended with {process.wait()}")

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def stream(url, tokens=500):
    """An answer under way: `(its response, its lines)`."""
    body = {"model": "demo-served", "prompt": "def f(", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    client = httpx.Client(timeout=PATIENCE)
    answer = client.send(client.build_request("POST", f"{url}/v1/completions", json=body), stream=True)
    lines = answer.iter_lines()
    assert next(lines).startswith("data: ")
    return answer, lines


def ended(process):
    _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    return process.returncode


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(start):
    process, url = start("--served-model-name", "demo-served")
    streams = [stream(url) for _ in range(2)]
    waiting, told = [], threading.Event()

    def wait():
        body = {"model": "demo-served", "prompt": "import ", "max_tokens": 3}
        told.set()
        waiting.append(httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE))

    thread = threading.Thread(target=wait)
    thread.start()
    told.wait()
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(httpx.TransportError):  # all may be finished before it can be asked
        while (health := httpx.get(f"{url}/health", timeout=PATIENCE)).status_code == 200:
            pass
        assert health.json()["status"] == "draining"
        refused = httpx.post(f"{url}/v1/completions", json={"model": "demo-served", "prompt": "x"}, timeout=PATIENCE)
        assert refused.status_code == 503 and refused.json()["error"]["type"] == "server_error"
    for _, lines in streams:
        *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
    thread.join()
    assert waiting[0].status_code in (200, 503)
    assert ended(process) == 0


def test_what_takes_longer_than_the_drain_is_told_so(start):
    process, url = start("--drain-seconds", "0", "--served-model-name", "demo-served")
    _, lines = stream(url)
    process.send_signal(signal.SIGINT)
    *_, last = [line for line in lines if line]
    if last != "data: [DONE]":  # it was not quick enough
        assert "stopped" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert ended(process) == 0


def test_a_second_signal_ends_at_once(start):
    process, url = start("--served-model-name", "demo-served")
    answers = [stream(url) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert ended(process) in (0, 130, 143)
    assert len(answers) == 2


def test_a_port_that_is_taken_is_one_line(refused, demo):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused("serve", demo, "--port", port)
    assert f"127.0.0.1 port {port}" in message and "--port" in message and message.count("\n") == 1


def test_addresses_and_names_that_are_none_are_refused(refused, demo):
    assert "--host" in refused("serve", demo, "--host", "no.such.host.invalid")
    assert "name" in refused("serve", demo, "--served-model-name", "")


def test_a_missing_library_names_the_command_that_mends_it(refused, demo, monkeypatch):
    from hybrid import cli_serve

    monkeypatch.setattr(cli_serve, "LIBRARIES", ("fastapi", "no_such_library"))
    assert "no_such_library: pip install 'fastapi" in refused("serve", demo)


def test_help_teaches(hybrid):
    code, out, _ = hybrid("serve", "--help")
    assert code == 0 and "Example: hybrid serve demo" in out and "Example: curl" in out
