"""64 clients x 50 requests of mixed lengths, a third of which leave midway: no error, no leak, memory flat."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from hybrid.stages.opening import open_engine

SCRIPT = Path(__file__).parents[3] / "scripts" / "load_server.py"
PATIENCE = 600.0
FLAT = 8 << 20  # bytes: what the allocator keeps or gives back between two readings


def resources():
    """Threads by name, and how many files and connections are open."""
    gc.collect()
    names = sorted(thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name)
    return names, len(list(Path("/proc/self/fd").iterdir()))


def put(running, *options):
    """A load by another process; its report."""
    command = [sys.executable, str(SCRIPT), f"{running.url}/v1", "--pid", str(os.getpid()), *map(str, options)]
    report = running.folder / "load.json"
    done = subprocess.run([*command, "--json", str(report)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


class Loaded:
    """A server, and what it had before anybody came."""

    def __init__(self, running, engine, folder):
        self.url, self.service, self.engine, self.folder = running.url, running.service, engine, folder


@pytest.fixture
def loaded(demo, serving, tmp_path):
    with open_engine(demo, max_sequences=8, threads=1) as engine, serving(engine, queue=54) as running:
        yield Loaded(running, engine, tmp_path)


def left_nothing(loaded, settled, before):
    load = settled(loaded.service)
    assert (load.running, load.waiting, load.pages_used, loaded.service.outstanding) == (0, 0, 0, 0)
    assert not loaded.service._places and not loaded.service._arrivals and not loaded.service._leavers
    end = time.monotonic() + PATIENCE
    while resources() != before:
        assert time.monotonic() < end, (resources(), before)
        time.sleep(0.1)
    figures = httpx.get(f"{loaded.url}/metrics").text
    assert 'hybrid_completions_total{finish_reason="error"} 0.0' in figures


def settle_first(loaded):
    """What is made once, at the first request."""
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for path, body in (("completions", {"prompt": "a"}), ("chat/completions", chat)):
        httpx.post(f"{loaded.url}/v1/{path}", json={"model": "demo", "max_tokens": 1, **body}).raise_for_status()
    time.sleep(0.2)


def test_a_small_load_leaves_nothing(loaded, settled):
    settle_first(loaded)
    before = resources()
    report = put(loaded, "--clients", 12, "--requests", 4)
    assert sum(report["outcomes"].values()) == 48 and report["outcomes"]["answered"] > 20
    left_nothing(loaded, settled, before)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_load_leaves_nothing_and_takes_no_more_memory(loaded, settled):
    settle_first(loaded)
    before = resources()
    put(loaded, "--clients", 64, "--requests", 10, "--seed", 1)  # warm: pages, caches of tokens, the allocator
    warm = psutil.Process().memory_info().rss
    report = put(loaded, "--clients", 64, "--requests", 50)
    resident = [warm, *report["resident"]]
    print("resident MiB:", *(f"{size / 2**20:.1f}" for size in resident), report["outcomes"])
    assert sum(report["outcomes"].values()) == 64 * 50 and set(report["outcomes"]) <= {"answered", "left", "later"}
    assert report["outcomes"]["left"] > (64 * 50 - report["outcomes"].get("later", 0)) / 5
    assert len(report["resident"]) == 5 and max(resident) - warm < FLAT, resident
    left_nothing(loaded, settled, before)


def test_who_leaves_while_sending_leaves_nothing(loaded, settled):
    """Uploads that are given up at every place: head, body, between chunks."""
    settle_first(loaded)
    before = resources()
    port = int(loaded.url.rpartition(":")[2])
    body = json.dumps({"model": "demo", "prompt": "x" * 3000, "max_tokens": 50}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = (
        head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(
            b"%x\r\n%s\r\n" % (len(part), part) for part in (body[at : at + 500] for at in range(0, len(body), 500))
        )
    )
    for content in (whole, chunked):
        for at in [*range(0, len(content), 149), len(content)]:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                connection.sendall(content[:at])
                if at % 2:
                    connection.shutdown(socket.SHUT_WR)
    left_nothing(loaded, settled, before)
    assert httpx.get(f"{loaded.url}/health").status_code == 200
