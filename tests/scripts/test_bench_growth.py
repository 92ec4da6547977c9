"""The growth benchmark on tiny models: what is planted, what a step has to read, filled contexts, the whole command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_growth
import pytest
from growth.cases import PROMPT, SCRIPTS, Case, Settings, measure, prompt, step_bytes
from growth.models import NEVER_SILENT, Models, predictors_name
from growth.tables import markdown
from peers.floor import Bandwidth, floor_bytes
from synthetic.shape import PRESETS, Shape

from hybrid.stages.peers.protocol import Worker
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors

SHAPE = Shape(**{**PRESETS["tiny"], "context": 4096})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("growth"), "tiny", SHAPE, lambda line: None)


@pytest.mark.parametrize("sparsity", [0, 0.03, 0.5, 0.8, 0.9, 0.95, 0.98])
def test_every_sparsity_of_the_table_can_be_planted(models: Models, sparsity: float) -> None:
    assert models.weights(sparsity).union(1) == pytest.approx(1 - max(sparsity, NEVER_SILENT), abs=1e-6)


def test_unions_grow_with_the_batch_and_less_than_it_does(models: Models) -> None:
    weights = models.weights(0.9)
    unions = [weights.union(batch) for batch in (1, 2, 4, 16)]
    assert unions == sorted(unions) and 0.1 < unions[1] < 0.2 and unions[3] < 1


def test_models_are_made_once_and_again_when_stale_or_damaged(tmp_path: Path) -> None:
    said: list[str] = []
    models = Models(tmp_path, "tiny", SHAPE, said.append)
    stale = tmp_path / "tiny-900-q4_0.00000000"
    stale.mkdir()
    path = models.directory(0.9, "q4_0")
    assert [line.split()[0] for line in said] == ["removing", "making"] and not stale.exists()
    assert models.directory(0.9, "q4_0") == path and len(said) == 2
    (path / "neurons/01.safetensors").unlink()
    models.directory(0.9, "q4_0")
    assert len(said) == 3 and (path / "neurons/01.safetensors").exists()
    assert list(tmp_path.iterdir()) == [path.parent]
    pair = models.pair(0.9, "q4_0")
    assert pair.directory == path and pair.gguf.stat().st_size > 100_000


def test_an_overshoot_adds_predictors_and_no_model(models: Models) -> None:
    path = models.directory(0.9, "f16", (1.0, 2.0))
    exact, twice = (read_predictors(path / "predictors" / f"{predictors_name(o)}.safetensors") for o in (1.0, 2.0))
    assert twice.quality[0].named == pytest.approx(2 * exact.quality[0].named)
    assert all(b.threshold < a.threshold for a, b in zip(exact.layers, twice.layers, strict=True))
    with pytest.raises(UserError, match="name"):
        models.directory(0.5, "f16", (1.0, 2.0))


def test_a_step_reads_the_union_of_its_rows_and_every_sequence_its_own_keys(models: Models) -> None:
    case = Case("f16", "predicted", 0.9)
    path, union = models.directory(0.9, "f16"), models.weights(0.9).union
    assert step_bytes(models, case, active=0.2, tokens=9) == floor_bytes(path, "predicted", union(1), PROMPT + 5)
    four = step_bytes(models, replace(case, batch=4), active=0.1, tokens=9)
    assert four == pytest.approx(floor_bytes(path, "predicted", union(4), 4 * (PROMPT + 5)))
    half = step_bytes(models, replace(case, batch=4), active=0.05, tokens=9)
    assert half == pytest.approx(floor_bytes(path, "predicted", union(4) / 2, 4 * (PROMPT + 5)))


def test_a_filled_context_continues_as_a_prompt_does(models: Models) -> None:
    text = prompt(320, SHAPE.vocab)
    opened = {"path": str(models.directory(0.9, "f16")), "predictors": "default"}
    with Worker("growth.worker", folders=[SCRIPTS]) as worker:
        for name, mode in (("first", "dense"), ("copied", "exact"), ("honest", "exact")):
            worker.ask("open", name=name, mode=mode, **opened, threads=1, context=336, sequences=1)
        worker.ask("fill", names=["first", "copied"], ids=text)
        for length in (320, 100, 17):
            honest = worker.ask("decode", name="honest", prompts=[text[:length]], tokens=6)
            for name in ("first", "copied"):
                filled = worker.ask("decode", name=name, prompts=[text[:length]], tokens=6, filled=True)
                assert filled["ids"] == honest["ids"] and len(filled["seconds"]) == 6, (name, length)
            assert filled["active"] == pytest.approx(honest["active"])


def test_a_batch_decodes_what_its_sequences_decode_alone(models: Models) -> None:
    prompts = [prompt(PROMPT, SHAPE.vocab, seed) for seed in range(3)]
    assert len({tuple(p) for p in prompts}) == 3
    with Worker("growth.worker", folders=[SCRIPTS]) as worker:
        opened = {"path": str(models.directory(0.9, "f16")), "mode": "exact", "predictors": "default"}
        worker.ask("open", name="e", **opened, threads=1, context=64, sequences=3)
        together = worker.ask("decode", name="e", prompts=prompts, tokens=6)
        alone = [worker.ask("decode", name="e", prompts=[p], tokens=6)["ids"][0] for p in prompts]
        assert together["ids"] == alone and len(together["seconds"]) == 6
        assert together["read"] == 1.0 and together["active"] == pytest.approx(0.1, abs=0.04)


def test_longer_prompts_begin_with_shorter_ones() -> None:
    assert prompt(40, 4096)[:17] == prompt(17, 4096) != prompt(17, 4096, seed=1)
    assert min(prompt(40, 4096)[1:]) >= 300


@pytest.mark.parametrize(
    "wrong",
    [
        ["--tables", "colour"],
        ["--formats", "q5_1"],
        ["--rounds", "0"],
        ["--contexts", "16"],
        ["--batches", "1,17"],
        ["--sparsities", "1"],
        ["--overshoots", "some"],
    ],
)
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        bench_growth.parse(wrong)
    assert error.value.code == 2


def test_the_tables_of_a_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def row(mode: str, speed: float, **values: Any) -> dict[str, Any]:
        case = {"weight_format": "q4_0", "sparsity": 0.9, "overshoot": 1.0, "context": 16, "batch": 1, **values}
        figures = {"floor_share": 0.5, "active": 0.1, "read": 0.1, "rounds": [speed], "disturbance": 0.02}
        of_each = speed / case["batch"]
        return {
            **case,
            "mode": mode,
            "tokens_per_second": speed,
            "tokens_per_second_of_each_sequence": of_each,
            **figures,
        }

    body = {
        "preset": "tiny",
        "shape": {"layers": 2, "vocab": 4096},
        "settings": {"rounds": 3, "tokens": 4, "threads": 1},
        "machine": {"isa": "x", "bandwidth_gigabytes_per_second": 20.0},
        "peer": {"q4_0": {"tokens_per_second": 50.0, "floor_share": 0.4, "rounds": [50.0]}},
        "tables": {
            "sparsity": [row("exact", 150.0), row("predicted", 200.0), row("dense", 100.0)],
            "context": [row("dense", 80.0, context=2048), row("dense", 90.0, context=128)],
            "batch": [row("dense", 300.0, batch=4)],
            "overshoot": [row("predicted", 180.0, overshoot=1.5)],
        },
    }
    lines = markdown(body).splitlines()
    assert "| 90 % | 200.0 | 50% | 2.00 | 4.00 | 150.0 | 50% | 1.50 | 3.00 |" in lines
    assert "| any, llama.cpp | 50.0 | 40% | 0.50 | 1.00 |  |  |  |  |" in lines
    assert lines.index("| 128 | 90.0 | 50% |") < lines.index("| 2,048 | 80.0 | 50% |")
    assert "| 4 | 300.0 | 75.0 | 50% |" in lines and "| 1.5x | 180.0 | 50% | 10.0% | 10.0% |" in lines
    widths = {line.count("|") for line in lines if line.startswith(("| sparsity", "| any", "| 90 %"))}
    assert widths == {10}
    (tmp_path / "r.json").write_text(json.dumps(body))
    bench_growth.main(["--redraw", str(tmp_path / "r.json")])
    assert capsys.readouterr().out.strip() == markdown(body)
    pytest.importorskip("matplotlib")
    bench_growth.main(["--redraw", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_cases_are_measured_in_turn(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.quiet.PATIENCE", 0.0)
    cases = [Case("f16", "predicted", 0.9, overshoot=overshoot) for overshoot in (1.0, 2.0)]
    settings, bandwidth, said = Settings(rounds=2, tokens=4, threads=1), Bandwidth(1, size=1 << 22), []
    measured, isa = measure(cases, models, settings, bandwidth, said.append)
    once, twice = (figures.row(models, settings, bandwidth.best) for figures in measured)
    assert isa and len(said) == len(once["rounds"]) == 2 and once["tokens_per_second"] > 0
    assert twice["read"] == pytest.approx(2 * once["read"], rel=0.3)
    assert twice["bytes_per_step"] == pytest.approx(once["bytes_per_step"], rel=0.05)


@pytest.mark.slow
def test_all_tables_of_a_tiny_model(scripts: Path, tmp_path: Path) -> None:
    sizes = "--preset tiny --layers 2 --rounds 1 --tokens 4 --threads 1 --contexts 32,64 --batches 1,3"
    sizes += " --sparsities 0,0.9 --formats q4_0"
    places = ["--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "o.json")]
    command = [sys.executable, str(scripts / "bench_growth.py"), *sizes.split(), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "o.json").read_text())["tables"]
    assert {name: len(rows) for name, rows in tables.items()} == {
        "sparsity": 5,
        "context": 6,
        "batch": 6,
        "overshoot": 3,
    }
    assert all(0 < row["floor_share"] < 1 for rows in tables.values() for row in rows)
    opened = [row for row in tables["sparsity"] if row["sparsity"] == 0]
    assert "| 0 % |" in done.stdout and "round 1 of 1" in done.stderr
    assert all(row["active"] > 0.99 for row in opened)
