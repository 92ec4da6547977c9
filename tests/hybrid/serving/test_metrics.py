"""Every figure of /metrics against what really happened."""

import resource
import threading
import time

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hybrid.runtime.summary import bytes_per_token, summarise
from hybrid.serving.metrics import Metrics
from hybrid.stages.opening import open_engine

PATIENCE = 120.0
STEP_SECONDS = 0.03
ASK = {"model": "demo", "prompt": "def parse_args(", "ignore_eos": True}


class Figures(dict):
    """Samples of /metrics by name and labels."""

    def __call__(self, name, **labels):
        return self.get((f"hybrid_{name}", frozenset(labels.items())))


def read(client):
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(answer.text) for s in family.samples]
    figures = Figures({(s.name, frozenset(s.labels.items())): s.value for s in samples})
    assert len(figures) == len(samples), "a series is there twice"
    return figures


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


@pytest.fixture
def fresh(demo, serving):
    """`(running, client, engine)`: a server that nobody asked anything yet, of two slots, with steps of 30 ms."""
    with open_engine(demo, max_sequences=2, threads=1) as engine:
        step = engine.step
        engine.step = lambda: (time.sleep(STEP_SECONDS), step())[1]
        with serving(engine, queue=3) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
            yield running, client, engine


def test_a_server_that_was_asked_nothing_says_so(fresh):
    _, client, _ = fresh
    figures = read(client)
    for name in ("prompt_tokens_total", "output_tokens_total", "cached_prompt_tokens_total", "preemptions_total"):
        assert figures(name) == 0
    for name in ("time_to_first_token", "inter_token", "completion", "queue"):
        assert figures(f"{name}_seconds_count") == figures(f"{name}_seconds_sum") == 0
    assert (figures("slots"), figures("queue_limit"), figures("running"), figures("waiting")) == (2, 3, 0, 0)
    assert figures("predictor_share") == figures("output_tokens_per_second") == 0
    assert figures("completions_total", finish_reason="error") == 0


def test_figures_after_exactly_these_requests(fresh, settled):
    running, client, engine = fresh
    long = ASK["prompt"] * 12
    asked = [(ASK["prompt"], 1, 1), (ASK["prompt"], 5, 2), (long, 4, 1), (long, 3, 1)]
    usages = [
        client.post("/v1/completions", json={**ASK, "prompt": prompt, "max_tokens": tokens, "n": n}).json()["usage"]
        for prompt, tokens, n in asked
    ]
    assert client.post("/v1/completions", json={**ASK, "temperature": 9}).status_code == 400
    assert client.post("/v1/completions", json={**ASK, "model": "other"}).status_code == 404
    load = settled(running.service)
    figures, sequences = read(client), sum(n for _, _, n in asked)

    assert figures("http_requests_total", endpoint="/v1/completions", status="200") == len(asked)
    assert figures("http_requests_total", endpoint="/v1/completions", status="400") == 1
    assert figures("http_requests_total", endpoint="/v1/completions", status="404") == 1
    output = sum(usage["completion_tokens"] for usage in usages)
    assert output == 1 + 2 * 5 + 4 + 3 == figures("output_tokens_total")
    prompts = sum(usage["prompt_tokens"] * n for usage, (_, _, n) in zip(usages, asked, strict=True))
    assert figures("prompt_tokens_total") == prompts
    assert figures("cached_prompt_tokens_total") == load.cached_prompt_tokens >= 16
    assert figures("completions_total", finish_reason="length") == sequences

    for name in ("time_to_first_token", "queue", "completion"):
        assert figures(f"{name}_seconds_count") == sequences
    assert figures("inter_token_seconds_count") == output - sequences
    # Each token took a step of 30 ms at least, and no answer was faster than its first token.
    assert figures("inter_token_seconds_bucket", le="0.025") == 0
    assert figures("inter_token_seconds_sum") >= STEP_SECONDS * (output - sequences)
    assert figures("time_to_first_token_seconds_bucket", le="0.025") == 0
    assert figures("queue_seconds_sum") <= figures("time_to_first_token_seconds_sum")
    assert figures("time_to_first_token_seconds_sum") <= figures("completion_seconds_sum")

    assert figures("kv_pages_used") == load.pages_used == 0 and figures("kv_pages_cached") == load.pages_cached > 0
    assert figures("kv_pages") == load.pages_total and figures("kv_page_bytes") == load.page_bytes

    decode, prompt = engine.ledger.decode, engine.ledger.prefill
    assert figures("engine_tokens_total", kind="decode") == decode.tokens == output - sequences
    assert figures("engine_tokens_total", kind="prompt") == prompt.tokens == prompts - load.cached_prompt_tokens
    rows = decode.cpu.finished
    assert figures("engine_rows_total", kind="decode", unit="cpu", part="finished") == rows > 0
    assert figures("rows_per_token", unit="cpu") == rows / decode.tokens == summarise(engine).rows_per_token["cpu"]
    assert figures("bytes_per_token") == bytes_per_token(engine, decode) > 0
    assert figures("engine_bytes_total", kind="decode") == pytest.approx(
        bytes_per_token(engine, decode) * decode.tokens
    )

    native = sum(figures("engine_native_seconds_total", kind=kind) for kind in ("decode", "prompt"))
    operators = {labels: v for (name, labels), v in figures.items() if name == "hybrid_operator_seconds_total"}
    assert 0 < sum(operators.values()) <= native * 1.01
    predictors = figures("operator_seconds_total", operator="predictors")
    assert figures("predictor_share") == pytest.approx(predictors / sum(operators.values())) and predictors > 0


def test_gauges_while_requests_run_and_wait_and_after_they_left(fresh, settled):
    running, client, _ = fresh
    before = read(client)
    stream = client.stream("POST", "/v1/completions", json={**ASK, "max_tokens": 400, "n": 3, "stream": True})
    with stream as answer:
        pieces = answer.iter_raw()
        next(pieces)
        until(lambda: read(client)("running"))
        figures = read(client)
        assert (figures("running"), figures("waiting")) == (2, 1)
        assert figures("kv_pages_used") > before("kv_pages_used")
        until(lambda: read(client)("output_tokens_per_second") > 0)
    settled(running.service)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={**ASK, "max_tokens": 400}, timeout=0.3)
    settled(running.service)
    until(lambda: read(client)("http_requests_total", endpoint="/v1/completions", status="499") == 1)
    figures = read(client)
    assert (figures("running"), figures("waiting"), figures("kv_pages_used")) == (0, 0, 0)
    assert figures("completions_total", finish_reason="cancelled") == 4
    assert figures("completion_seconds_count") == 4
    assert figures("time_to_first_token_seconds_count") <= 3 + 1  # of the third that waited, perhaps none


def test_the_process_and_its_memory(fresh):
    _, client, engine = fresh
    before = resource.getrusage(resource.RUSAGE_SELF)
    figures = read(client)
    after, resident = resource.getrusage(resource.RUSAGE_SELF), psutil.Process().memory_info().rss
    assert before.ru_minflt <= figures("page_faults_total", kind="minor") <= after.ru_minflt
    assert before.ru_majflt <= figures("page_faults_total", kind="major") <= after.ru_majflt
    assert figures("memory_bytes", kind="resident") == pytest.approx(resident, rel=0.05)
    assert figures("memory_bytes", kind="mapped") == sum(size for _, size, _ in engine.directory.mappings())
    assert not [name for name, _ in figures if name.startswith("hybrid_gpu")]


def test_rows_by_unit_of_a_model_on_two_units(demo, serving):
    with (
        open_engine(demo, max_sequences=1, threads=1, device="cpu", vram=9 << 20, automatic=True) as engine,
        serving(engine) as running,
        httpx.Client(base_url=running.url, timeout=PATIENCE) as client,
    ):
        client.post("/v1/completions", json={**ASK, "max_tokens": 9}).raise_for_status()
        figures, summary = read(client), summarise(engine)
        placed = {dict(labels)["purpose"]: v for (name, labels), v in figures.items() if name == "hybrid_gpu_bytes"}
        assert placed == engine.machine.units["gpu"].used and sum(placed.values()) > 0
        for unit in ("gpu", "cpu"):
            assert figures("rows_per_token", unit=unit) == summary.rows_per_token[unit]
        assert summary.rows_per_token["gpu"] > 0


def test_what_clients_make_up_makes_no_series(fresh):
    _, client, _ = fresh
    read(client)
    known = len(read(client))
    for at in range(30):
        client.get(f"/made/up/{at}")
        client.get(f"/v1/models/{at}")
        client.request(f"VERB{at}", "/v1/completions")
        client.post("/v1/completions", json={**ASK, "model": f"m{at}"})
    figures = read(client)
    assert figures("http_requests_total", endpoint="other", status="404") == 30
    assert figures("http_requests_total", endpoint="/v1/models/{name}", status="404") == 30
    assert len(figures) <= known + 2 * 4  # each has the time when it was created, too


def test_what_is_refused_before_it_is_looked_at_counts_where_it_led_to(fresh):
    _, client, _ = fresh
    client.post("/v1/completions", content=b"x", headers={"Content-Type": "text/plain"})
    client.post("/v1/completions", json=ASK, headers={"Origin": "https://evil.example"})
    figures = read(client)
    assert figures("http_requests_total", endpoint="/v1/completions", status="415") == 1
    assert figures("http_requests_total", endpoint="/v1/completions", status="403") == 1


def test_connections_that_never_become_requests_are_counted(fresh):
    import socket

    running, client, _ = fresh
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert connection.recv(9999).startswith(b"HTTP/1.1 400 ")
    assert read(client)("http_requests_total", endpoint="connection", status="400") == 1


def test_openmetrics_is_spoken_to_who_asks_for_it(fresh):
    _, client, _ = fresh
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_counts_from_many_threads_all_count(fresh):
    running, _, _ = fresh
    metrics, readings = Metrics(running.service), []

    def count(status):
        for _ in range(2000):
            metrics.request("/health", status)

    threads = [threading.Thread(target=count, args=(status,)) for status in ("200", "200", "503")]
    threads.append(threading.Thread(target=lambda: readings.extend(metrics.answer("").body for _ in range(20))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = metrics.answer("").body.decode()
    assert 'endpoint="/health",status="200"} 4000.0' in content and 'status="503"} 2000.0' in content
    assert len(readings) == 20


def test_tokens_per_second_are_those_of_the_last_whole_seconds(fresh):
    running, _, _ = fresh
    metrics = Metrics(running.service)
    for second, tokens in ((100, 30), (100, 10), (101, 20), (105, 40)):
        metrics._count_recent(second, tokens)
    assert metrics.tokens_per_second(100.9) == 0
    assert metrics.tokens_per_second(101.5) == 4
    assert metrics.tokens_per_second(106.0) == 10
    assert metrics.tokens_per_second(111.0) == 6
    assert metrics.tokens_per_second(500.0) == 0
