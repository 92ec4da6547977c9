"""What is measured on a GPU, rehearsed without one: operators, bounds, results that grow, and how they are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_measure
import pytest
import show_gpu
from gpu import bounds, operators
from gpu.machine import machine, short_name
from synthetic.directory import write_directory
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights

from hybrid.ops import captured, cuda
from hybrid.stages.compare_contenders import Settings
from hybrid.stages.model_predictors import find_predictors
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import baseline_plans
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from placement.plan import Budgets

SMALL = Shape(hidden=64, layers=2, ffn=128, heads=2, kv_heads=1, vocab=4096, rank=15, context=1024)
WHOLE = 1 << 25


@pytest.fixture
def readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`readings(interpreted) -> rows by operator` of a small model, all of it on the GPU."""
    monkeypatch.setattr(operators, "SECONDS", 0.0)
    monkeypatch.setattr(operators, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(operators, "ACTIVE", (1.0, 0.1))
    monkeypatch.setattr(operators, "CONTEXTS", (64, 4096))
    monkeypatch.setattr(captured, "ROUNDS", 1)
    path = tmp_path / "small"
    write_directory(path, PlantedWeights(SMALL), "bf16", lambda stage, done, total: None)

    def measure(interpreted: bool) -> dict[str, dict[str, Any]]:
        plan = next(iter(baseline_plans(ModelFiles.open_files(path), Budgets(WHOLE, None, 1024), "f16", 0).values()))
        with ModelDirectory.open(path) as directory, open_engine(path, mode="dense", plan=plan, device="cpu") as engine:
            if interpreted:
                engine.machine.units["gpu"].pool = None
            found = operators.measure(engine, find_predictors(directory, "default"))
            return {row["operator"]: row for row in found}

    return measure


@pytest.mark.parametrize("interpreted", [False, True])
def test_operators_of_every_kind_are_measured_over_all_layers(readings, interpreted: bool) -> None:
    if interpreted and not cuda.available(operators.torch.device("cpu")):
        pytest.skip("Triton's interpreter is not there")
    rows = readings(interpreted)
    hidden, layers, kv = SMALL.hidden, SMALL.layers, SMALL.hidden // 2
    assert rows.pop("copy")["gigabytes_per_second"] > 0
    weights = {
        "projections of attention": 2 * layers * hidden * (2 * hidden + 2 * kv),
        "feed-forward, 100% of the rows": 2 * layers * SMALL.ffn * 3 * hidden,
        "feed-forward, 10% of the rows": 2 * layers * 13 * 3 * hidden,
        "attention over 64 tokens": layers * 64 * 2 * kv * 2,
        "predictors": 2 * layers * SMALL.predictor_rank * (hidden + SMALL.ffn),
    }
    long = rows.pop("attention over 4,096 tokens")
    assert "trained for 1024 tokens" in long["reason"]
    assert set(rows) == set(weights)
    for name, row in rows.items():
        assert row["layers"] == layers
        if not interpreted and name.startswith("attention"):
            assert "only as part of a step" in row["reason"]
            continue
        assert row["reason"] is None and row["bytes"] == weights[name] and row["seconds"] > 0, name
        assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)


def test_bounds_are_of_every_contender_of_this_engine(tiny_directories: dict[str, Path]) -> None:
    files = ModelFiles.open_files(tiny_directories["bf16"])
    settings = Settings(vram=2 << 20, device="cpu", context=256, prompt_tokens=16, tokens=4)
    found = bounds.bounds(files, settings, gpu=100e9, cpu=10e9)
    layered = next(name for name in found if name.startswith("first-"))
    assert set(found) == {"exact, planned", "predicted, planned", layered, "attention-on-gpu", "everything-on-cpu"}
    assert found["predicted, planned"] > found["everything-on-cpu"]
    twice = bounds.bounds(files, settings, gpu=200e9, cpu=20e9)
    assert twice["everything-on-cpu"] == pytest.approx(2 * found["everything-on-cpu"])


def body(gpu: str | None = None, **parts: Any) -> dict[str, Any]:
    described = {**machine("cpu"), "gpu": gpu, "gpu_memory": 1 << 34, "cuda": "13.0"}
    return {"machine": described, "models": {}, **parts}


def test_results_grow_and_are_never_those_of_another_gpu(tmp_path: Path) -> None:
    described = body()["machine"]
    results = gpu_measure.Results(tmp_path, described)
    assert results.path.name == "gpu-stand-in.json"
    results.model("a")["operators"] = [1]
    results.save()
    again = gpu_measure.Results(tmp_path, described)
    again.model("a")["compare"] = [2]
    again.save()
    assert json.loads(results.path.read_text())["models"] == {"a": {"operators": [1], "compare": [2]}}
    assert short_name({"gpu": "NVIDIA H200 (SXM)"}) == "nvidia-h200-sxm"
    other = {**described, "gpu": "stand in"}
    assert gpu_measure.Results(tmp_path, other).path == results.path
    assert gpu_measure.Results(tmp_path, other).body["models"] == {}


def test_results_of_several_calls_are_shown_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = {"operator": "copy", "gigabytes_per_second": 4000.0, "of": "bytes"}
    read = {"operator": "x", "layers": 2, "bytes": 10**9, "seconds": 1e-3, "gigabytes_per_second": 1000.0}
    rows = [copy, {**read, "share_of_copy": 0.25, "reason": None}, {**read, "operator": "y", "reason": "too small"}]
    first = body("H200", models={"m": {"operators": rows}})
    hand_over = {"asleep_seconds": 30e-6, "watching_seconds": 10e-6, "apart": [0.0, 0.0]}
    hardware = {"link_bandwidth": 50e9, "back_bandwidth": 40e9}
    trace = {"share": 0.5, "hidden_share": 0.9, "split_milliseconds": {"near": 1.0, "far": 0.5, "waiting": 0.1}}
    second = body("H200", models={"m": {"trace": trace}}, hand_over=hand_over, hardware=hardware, failed=["z: gone"])
    for number, result in enumerate((first, second)):
        (tmp_path / f"{number}.json").write_text(json.dumps(result))
    command = ["show_gpu", str(tmp_path / "0.json"), str(tmp_path / "1.json"), "--into", str(tmp_path / "all.json")]
    monkeypatch.setattr(sys, "argv", command)
    show_gpu.main()
    shown = capsys.readouterr().out
    for text in ("Machine: H200", "30.0 us after", "10.0 us where", "| x ", "25%", "not measured: y: too small"):
        assert text in shown
    assert "90% of the smaller side of split layers hidden" in shown and "not measured: z: gone" in shown
    assert set(json.loads((tmp_path / "all.json").read_text())["models"]["m"]) == {"operators", "trace"}
    (tmp_path / "other.json").write_text(json.dumps(body("A100")))
    monkeypatch.setattr(sys, "argv", ["show_gpu", str(tmp_path / "0.json"), str(tmp_path / "other.json")])
    with pytest.raises(SystemExit, match="different GPUs"):
        show_gpu.main()
    monkeypatch.setattr(sys, "argv", ["show_gpu"])
    show_gpu.main()
    assert capsys.readouterr().out.startswith("Not measured: no machine with a GPU")


@pytest.mark.slow
def test_everything_is_rehearsed_without_a_gpu(
    tiny_directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.symlink_to(tiny_directories["bf16"])
    options = ["--out", str(tmp_path / "out"), "--second-device", "cpu", "--budgets", "0.5", "--formats", "bf16"]
    monkeypatch.setattr(sys, "argv", ["gpu_measure", str(model), *options, "--context", "256"])
    gpu_measure.main()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"gpu-stand-in.json", "hardware.json", "compare-model.png", "trace-model.json"}
    found = json.loads((tmp_path / "out/gpu-stand-in.json").read_text())
    (row,) = found["models"]["model"]["compare"]
    measured = {one["name"] for one in row["comparison"]["rows"] if one["reason"] is None}
    assert {"exact, planned", "predicted, planned", "everything-on-cpu"} <= measured <= set(row["bounds"])
    assert "tokens_per_second" in found["models"]["model"]["trace"]
    assert "a rehearsal, no figures of a GPU" in "\n".join(show_gpu.lines(found))
