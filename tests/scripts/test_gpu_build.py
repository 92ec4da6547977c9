"""Models to measure a GPU with: made once, in hottest-first order, as far as the disk holds them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_build
import pytest
import torch
from synthetic.ahead import Ahead
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.profile import read_profile

SHAPE = "--preset tiny --vocab 4096"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*more: str) -> list[dict[str, object]]:
        options = [str(tmp_path / "work"), "--out", str(tmp_path / "build.json"), "--device", "cpu", "--shape", SHAPE]
        monkeypatch.setattr(sys, "argv", ["gpu_build", *options, *more])
        gpu_build.main()
        return json.loads((tmp_path / "build.json").read_text())

    return run


def test_a_model_is_made_once_with_its_checkpoint(built, tmp_path: Path) -> None:
    (row,) = built()
    assert row["model"] == "model" and row["seconds"] > 0 and row["checkpoint_seconds"] > 0
    path = Path(row["directory"])
    made = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    assert 0.95 * made < row["bytes"] < made
    with ModelDirectory.open(path) as directory:
        profile = read_profile(directory.profile_path("default"), "")
        for layer in range(directory.spec.n_layers):
            assert directory.neuron_ids(layer).tolist() == list(range(directory.spec.n_neurons)), "nothing was moved"
            assert (profile.active[layer][:-1] >= profile.active[layer][1:]).all()
    assert (Path(row["checkpoint"]) / "config.json").exists()
    (again,) = built()
    assert again["seconds"] is None and "checkpoint_seconds" not in again and again["directory"] == row["directory"]
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["model", "model.checkpoint"]


def test_what_the_disk_has_no_room_for_is_said(
    built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_build, "SPARE", 1 << 60)
    with pytest.raises(SystemExit, match="no model was made"):
        built()
    (row,) = json.loads((tmp_path / "build.json").read_text())
    assert row["directory"] is None and "are free" in row["reason"]
    assert "no directory" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_named(built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="gpu_build: torch sees no device 'cuda'"):
        built("--device", "cuda")


def test_tensors_made_ahead_are_the_same_in_any_order() -> None:
    weights = PlantedWeights(Shape(**PRESETS["tiny"]))
    names = list(weights.names)
    with Ahead(weights, names) as ahead:
        for name in [*names[:4], *reversed(names)]:
            assert torch.equal(ahead.tensor(name), weights.tensor(name)), name


def test_what_cannot_be_made_is_raised_where_it_is_asked_for() -> None:
    class Broken(PlantedWeights):
        def tensor(self, name: str) -> torch.Tensor:
            raise UserError(f"no {name}")

    with Ahead(Broken(Shape(**PRESETS["tiny"])), ["a", "b"]) as ahead, pytest.raises(UserError, match="no a"):
        ahead.tensor("a")
