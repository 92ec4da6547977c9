"""The benchmark against llama.cpp: its bytes counted by hand, its workers, its figures, the whole on a tiny model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_peers
import pytest
import show_peers
from peers.floor import Bandwidth, floor_bytes
from peers.models import model_pair
from peers.rounds import Contender, Options, ids
from rich.console import Console
from synthetic.shape import PRESETS, Shape

from hybrid.stages.peers.protocol import Worker, WorkerError

PEER = os.environ.get("PEER_PYTHON", sys.executable)
TINY = Shape(**PRESETS["tiny"])
OPTIONS = Options(("predicted",), rounds=3, threads=1, tokens=8, prompt=4, prefill=32, peer_python=PEER, isa=None)


@pytest.mark.parametrize(("weight_format", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_the_floor_counts_what_a_token_needs(
    tiny_directories: dict[str, Path], weight_format: str, bits: float
) -> None:
    hidden, neurons, vocab, layers, kv = TINY.hidden, TINY.ffn, TINY.vocab, TINY.layers, TINY.hidden // 2
    attention = 2 * hidden * hidden + 2 * kv * hidden
    dense = bits / 8 * (layers * attention + vocab * hidden + hidden) + 4 * hidden * (2 * layers + 1)
    cache = 100 * layers * 2 * kv * 2
    vector = bits / 8 * hidden
    predictor_bits = 16 if weight_format == "f16" else 8.5
    predictors = layers * predictor_bits / 8 * 64 * (hidden + neurons)
    rows = {
        "dense": layers * neurons * 3 * vector,
        "exact": layers * neurons * (1 + 0.1 * 2) * vector,
        "predicted": layers * neurons * 0.1 * 3 * vector + predictors,
    }
    for mode, expected in rows.items():
        counted = floor_bytes(tiny_directories[weight_format], mode, active=0.1, context=100)
        assert counted == pytest.approx(dense + cache + expected), mode


def test_the_bandwidth_is_that_of_the_fastest_sum() -> None:
    bandwidth = Bandwidth(threads=1, size=1 << 22)
    measured = [bandwidth.measure(1) for _ in range(3)]
    assert bandwidth.best == max(measured) and min(measured) > 0


@pytest.mark.parametrize("mode", ["predicted", "exact", "dense"])
def test_the_engine_answers_as_a_contender(tiny_directories: dict[str, Path], mode: str) -> None:
    with Worker("hybrid.stages.peers.engine_worker") as worker:
        worker.ask("open", path=str(tiny_directories["f16"]), threads=1, context=256, mode=mode)
        decoded = worker.ask("decode", prompt=ids(4), tokens=8)
        assert len(decoded["seconds"]) == len(decoded["ids"]) == 8 and min(decoded["seconds"]) > 0
        assert decoded["active"] == (1.0 if mode == "dense" else pytest.approx(0.1, abs=0.04))
        assert decoded["read"] == pytest.approx(decoded["active"] if mode == "predicted" else 1.0, abs=0.01)
        assert set(decoded["operators"]) >= {"linear", "head", "feed-forward", "attention"}
        assert (decoded["operators"]["predictors"] > 0) == (mode == "predicted")
        assert 0 < decoded["interpreter_share"] < 1 and min(decoded["operators"].values()) >= 0
        prefilled = worker.ask("prefill", prompt=ids(4))
        assert prefilled["next"] == decoded["ids"][0] and prefilled["seconds"] > 0
        with pytest.raises(WorkerError, match="AssertionError"):
            worker.ask("close")
            worker.ask("decode", prompt=ids(4), tokens=1)


def test_shares_of_a_step_are_those_of_decoding_alone(tiny_directories: dict[str, Path]) -> None:
    with Worker("hybrid.stages.peers.engine_worker") as worker:
        worker.ask("open", path=str(tiny_directories["f16"]), threads=1, context=256, mode="dense")
        decoded = worker.ask("decode", prompt=ids(200), tokens=2)  # the prompt takes many times as long
        together = sum(decoded["operators"].values()) + decoded["interpreter_share"]
        assert 0 < together < 1 + 1e-9


def test_a_worker_that_fails_says_so_and_one_that_ends_is_noticed() -> None:
    with Worker("hybrid.stages.peers.engine_worker") as worker, pytest.raises(WorkerError, match="not a folder"):
        worker.ask("open", path="/nowhere", threads=1, context=256, mode="dense")
    with (
        Worker("hybrid.stages.peers.no_such_module") as worker,
        pytest.raises(WorkerError, match="ended with status 1"),
    ):
        worker.ask("open")


def test_figures_are_medians_over_rounds_against_the_peer_of_the_same_round() -> None:
    memory = {"bandwidth": [20e9, 80e9, 40e9]}
    peer = Contender({}, decode=[10.0, 20.0, 10.0], prefill=[100.0, 100.0, 100.0], **memory)
    ours = Contender({"isa": "x"}, [20.0, 60.0, 20.0], [50.0, 50.0, 50.0], active=0.1, read=0.1, **memory)
    row = bench_peers.figures(ours, peer, needed=1e9, bandwidth=40e9, options=OPTIONS)
    assert (row["ratio"], row["tokens_per_second"], row["prefill_ratio"]) == (2.0, 20.0, 0.5)
    assert (row["floor_share"], row["gigabytes_per_second"]) == (0.5, 20.0)
    assert row["floor_share_of_the_moment"] == 0.75  # the middle of 1, 0.75 and 0.5


def test_shares_of_a_step_are_medians_and_a_second_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"decode": [10.0] * 3, "prefill": [100.0] * 3, "bandwidth": [20e9] * 3}
    told = [{"linear": share, "head": 0.1, "feed-forward": 0.2, "norms": 0.05} for share in (0.6, 0.2, 0.4)]
    ours = Contender({"isa": "x"}, operators=told, interpreter_share=[0.04, 0.02, 0.2], **speeds)
    peer = Contender({"version": "1"}, **speeds)
    row, of_peer = (bench_peers.figures(c, peer, needed=1e9, bandwidth=40e9, options=OPTIONS) for c in (ours, peer))
    assert row["operators"] == {"linear": 0.4, "head": 0.1, "feed-forward": 0.2, "norms": 0.05}
    assert row["interpreter_share"] == 0.04 and not {"operators", "interpreter_share"} & set(of_peer)

    def shown(row: dict[str, Any]) -> list[str]:
        machine = {"preset": "tiny", "bandwidth_gigabytes_per_second": 40.0, "options": dataclasses.asdict(OPTIONS)}
        body = {"q4_0": {"predicted": row, "prefill": {"ratio": 1.0}, "llama.cpp": of_peer}, "machine": machine}
        (tmp_path / "o.json").write_text(json.dumps(body))
        monkeypatch.setattr(sys, "argv", ["show_peers", str(tmp_path / "o.json")])
        show_peers.main()
        return capsys.readouterr().out.splitlines()

    lines = shown(row)
    assert "| q4_0 | predicted | 40.0% | 10.0% | 20.0% | 0.0% | 0.0% | 5.0% | 4.0% |" in lines
    assert {line.count("|") for line in lines if "interpreter" in line or "| 5.0% |" in line} == {10}
    older = {name: value for name, value in row.items() if name not in ("operators", "interpreter_share")}
    without = shown(older)
    assert lines == [*without[:4], *lines[4:10], *without[4:]]


def test_cached_models_are_made_once_and_stale_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "tiny.00000000.q8_0.gguf").write_bytes(b"old")
    said: list[str] = []
    pair = model_pair(tmp_path, "tiny", TINY, "q8_0", said.append)
    assert {path.name for path in tmp_path.iterdir()} == {pair.directory.name, pair.gguf.name}
    assert len(said) == 3
    before = pair.gguf.stat().st_mtime_ns
    assert model_pair(tmp_path, "tiny", TINY, "q8_0", said.append) == pair
    assert len(said) == 3 and pair.gguf.stat().st_mtime_ns == before
    (pair.directory / "neurons/01.safetensors").unlink()
    model_pair(tmp_path, "tiny", TINY, "q8_0", said.append)
    assert len(said) == 4 and "neurons" in {path.name for path in pair.directory.iterdir()}


@pytest.mark.parametrize("wrong", [["--formats", "q5_1"], ["--modes", "fast"], ["--rounds", "0"], ["--prompt", "1"]])
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        bench_peers.parse(wrong)
    assert error.value.code == 2


def test_a_peer_that_is_not_there_is_named(scripts: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(scripts / "bench_peers.py"), "--preset", "tiny", "--formats", "q8_0"]
    command += ["--cache", str(tmp_path), "--peer-python", str(tmp_path / "none"), "--out", str(tmp_path / "o.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "none" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "o.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run([PEER, "-c", "import llama_cpp"], capture_output=True).returncode != 0,
    reason="llama-cpp-python is not installed; PEER_PYTHON names an interpreter that has it",
)
def test_both_contenders_on_a_tiny_model(scripts: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    command = [sys.executable, str(scripts / "bench_peers.py"), "--preset", "tiny", "--formats", "f16,q4_0"]
    command += ["--rounds", "1", "--tokens", "8", "--prefill", "64", "--threads", "1", "--modes", "predicted,exact"]
    command += ["--cache", str(tmp_path / "cache"), "--peer-python", PEER, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text())
    assert set(body) == {"f16", "q4_0", "machine"}
    for weight_format in ("f16", "q4_0"):
        rows = body[weight_format]
        assert set(rows) == {"predicted", "exact", "prefill", "llama.cpp"}
        assert rows["llama.cpp"]["ratio"] == 1.0 and rows["predicted"]["ratio"] > 0 and rows["prefill"]["ratio"] > 0
        assert "CPU" in rows["llama.cpp"]["about"]["system"]
        assert 0 < rows["predicted"]["floor_share"] < 1 and rows["predicted"]["distinct_tokens"] > 1
    console = Console(file=io.StringIO(), width=140)
    bench_peers.show(console, {"q4_0": body["q4_0"]}, "title")
    assert "llama.cpp" in console.file.getvalue()  # type: ignore[attr-defined]
