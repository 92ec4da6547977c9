"""The benchmark of requests together: a server's lines, figures and tables, and a short real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_serving
import pytest
import show_serving
from hypothesis import given
from hypothesis import strategies as st
from serving.client import Answer, Load, LoadError, counted, events, run_load
from serving.http import told
from serving.latency import quantile
from serving.prompts import Prompts
from serving.servers import free_port, running


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def test_events_are_the_objects_of_a_stream() -> None:
    lines = [
        b": still here\r\n",
        b"\r\n",
        b"1a\r\n",
        b'data: {"a": 1}\n',
        b'data: {"b": "data: "}\r\n',
        b"data: [DONE]\n",
    ]
    assert events(lines) == [{"a": 1}, {"b": "data: "}]


def test_tokens_are_counted_by_the_server_where_it_counts() -> None:
    pieces = [piece("a"), piece("", "length"), {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 3}}]
    assert counted(pieces, 9) == (7, 3)
    assert counted([{**piece("a"), "usage": None}, piece("", "length")], 9) == (9, None), "a text of full length"
    assert counted([piece("a"), piece("b"), piece("", "stop")], 9) == (2, None)


def test_what_failed_is_no_answer() -> None:
    with pytest.raises(LoadError, match="no more memory"):
        counted([piece("a"), {"error": {"message": "no more memory"}}], 9)


def test_a_load_lasts_until_its_last_answer() -> None:
    load = Load([Answer(4, None, 0.1, 1.0), Answer(6, 5, 0.3, 2.5)])
    assert told(load) == {"tokens": 10, "seconds": 2.5, "first_seconds": 0.2, "prompt_tokens": 5}


@given(st.lists(st.floats(0, 1e3), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_prompts_have_the_tokens_asked_for_and_differ(tiny_directories: dict[str, Path]) -> None:
    from hybrid.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_directories["f16"])
    prompts = Prompts(tokenizer, 512)
    texts = [prompts.text(20) for _ in range(8)]
    assert len(set(texts)) == 8
    assert all(20 <= len(tokenizer.encode(text)) < 32 for text in texts)
    assert len(prompts.ids(50)) == 50 and max(prompts.ids(50)) < 512
    assert len(prompts.letters(9)) == 9


def test_a_server_that_does_not_start_says_why() -> None:
    import sys

    with (
        pytest.raises(LoadError, match="no such model"),
        running([sys.executable, "-c", "raise SystemExit('no such model')"], free_port()),
    ):
        pass


def test_nobody_answers_at_a_free_port() -> None:
    with pytest.raises(OSError):
        run_load(free_port(), [{"max_tokens": 1}])


def test_parts_and_formats_are_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["--parts", "speed"],
        ["--formats", "q2"],
        ["--requests", "0,4"],
        ["--requests", "four"],
        ["--prompt", "3"],
    ):
        with pytest.raises(SystemExit):
            bench_serving.parse(wrong)
    assert "speed" in capsys.readouterr().err


def test_a_short_run_of_the_demo_is_a_table(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    few = [
        "--model",
        "demo",
        "--rounds",
        "1",
        "--tokens",
        "4",
        "--http-tokens",
        "4",
        "--requests",
        "1,2",
        "--threads",
        "1",
    ]
    bench_serving.main([*few, "--parts", "batching", "--modes", "predicted,exact", "--out", str(out)])
    bench_serving.main([*few, "--parts", "latency,http", "--long", "40", "--decoding", "2", "--out", str(out)])
    body = json.loads(out.read_text())
    assert set(body["demo"]) == {"batching", "latency", "http"}, "parts that were measured before stay"
    assert all(rate > 0 for rate in body["demo"]["batching"]["exact"]["together"]["2"]["rate"])
    (latency,) = body["demo"]["latency"]
    assert min(*latency["alone"], *latency["beside"], latency["seconds"]) > 0
    assert [of["tokens"] for of in body["demo"]["http"]["2"]["http"]] == [8]
    assert body["demo"]["http"]["2"]["http"][0]["prompt_tokens"] >= 16
    table = list(show_serving.tables(body))
    rows = [line for line in table if line.startswith("| demo")]
    assert len(rows) == 4 + 1 + 2
    assert all(line.count("|") == rows[0].count("|") for line in rows[:4])
