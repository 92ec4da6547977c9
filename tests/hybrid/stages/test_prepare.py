"""`hybrid prepare`: a model ready in one call; what is there is kept, interruptions are mended, no more is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings
from hybrid.stages.prepare import PrepareReport, PrepareSettings, prepare
from hybrid.stages.prepare_pace import Status
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.store.files import ModelFiles
from hybrid.store.origin import read_origin
from placement.plan_file import read_plan
from profiler.artifacts import UserError
from profiler.profile import read_profile

MIB = 1 << 20


@pytest.fixture
def ready(llama_checkpoint: Path, text: Path, tmp_path: Path) -> Callable[..., PrepareReport]:
    """`ready(**settings)`: the tiny checkpoint, prepared in `model` without predictors."""

    def run(source: Path = llama_checkpoint, show: Any = lambda status: None, **settings: Any) -> PrepareReport:
        given = {"texts": (text,), "predictors": False, **settings}
        return prepare(str(source), tmp_path / "model", PrepareSettings(**given), show)

    return run


def outcomes(report: PrepareReport) -> dict[str, str]:
    return {step.phase: step.outcome for step in report.steps}


def stamps(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}


def test_one_call_does_what_three_commands_do(
    ready: Callable[..., PrepareReport], llama_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    report = ready()
    assert outcomes(report) == {"pack": "done", "profile": "done", "plan": "done"}
    by_hand = pack(llama_checkpoint, tmp_path / "by-hand").destination
    profile(by_hand, [text], ProfileSettings(train=False))
    ours, theirs = ModelFiles.open_files(report.path), ModelFiles.open_files(by_hand)
    ours.verify()
    assert ours.pack_digest == theirs.pack_digest
    assert ours.row_order_digest() == theirs.row_order_digest()
    counted, expected = (read_profile(files.profile_path("default")) for files in (ours, theirs))
    np.testing.assert_array_equal(counted.active, expected.active)
    assert read_plan(ours.plan_path("default")).mode == report.mode == "exact"
    assert [command.split()[1] for command in report.next] == ["run", "chat", "serve"]
    assert report.source == str(llama_checkpoint)
    origin = read_origin(report.path)
    assert origin is not None and origin.source == report.source


def test_a_second_call_keeps_all_and_writes_nothing(ready: Callable[..., PrepareReport], tmp_path: Path) -> None:
    ready()
    before = stamps(tmp_path / "model")
    assert set(outcomes(ready()).values()) == {"kept"}
    assert stamps(tmp_path / "model") == before


class Interrupt:
    """Interrupts as soon as a stage is shown."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, status: Status) -> None:
        if status.stage == self.stage:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stage", "then"),
    [
        ("pack", {"pack": "done", "profile": "done"}),
        ("packing", {"pack": "done", "profile": "done"}),
        ("profile", {"pack": "kept", "profile": "done"}),
        ("tokenising", {"pack": "kept", "profile": "done"}),
        ("counting", {"pack": "kept", "profile": "done"}),
        ("reordering rows", {"pack": "kept", "profile": "kept"}),
        ("plan", {"pack": "kept", "profile": "kept"}),
    ],
)
def test_an_interrupt_leaves_what_the_next_call_goes_on_from(
    ready: Callable[..., PrepareReport], tmp_path: Path, stage: str, then: dict[str, str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        ready(show=Interrupt(stage))
    model = tmp_path / "model"
    assert not list(tmp_path.glob("model.partial*"))
    if then["pack"] == "kept":
        ModelFiles.open_files(model).verify()
    else:
        assert not model.exists()
    report = ready()
    assert outcomes(report) == {**then, "plan": "done"}
    files = ModelFiles.open_files(model)
    counted = read_profile(files.profile_path("default"))
    for layer in range(counted.layers):
        np.testing.assert_array_equal(files.neuron_ids(layer), counted.hottest_first(layer))
    assert not list(model.rglob(".*"))


def test_the_same_weights_from_elsewhere_are_kept_and_others_refused(
    ready: Callable[..., PrepareReport], llama_checkpoint: Path, make_llama: Any, tmp_path: Path
) -> None:
    ready()
    moved = tmp_path / "moved"
    shutil.copytree(llama_checkpoint, moved)
    assert outcomes(ready(moved))["pack"] == "kept"
    before = stamps(tmp_path / "model")
    (tmp_path / "checkpoints").mkdir()
    other = make_llama(tmp_path / "checkpoints", seed=7)
    with pytest.raises(UserError, match=r"holds another model than .*; choose another folder, or remove it: rm -r"):
        ready(other)
    os.utime(moved / "config.json")
    (tmp_path / "model" / "origin.json").write_text("{}")
    assert outcomes(ready(moved))["pack"] == "kept"
    (tmp_path / "model" / "origin.json").unlink()
    assert {name: stamp for name, stamp in before.items() if name != "origin.json"} == stamps(tmp_path / "model")


def test_another_format_is_refused(ready: Callable[..., PrepareReport]) -> None:
    ready()
    with pytest.raises(UserError, match=r"is packed in bf16; for q8_0 choose another folder"):
        ready(weight_format="q8_0")
    assert outcomes(ready(weight_format="bf16"))["pack"] == "kept"


def test_what_is_no_model_directory_is_not_touched(ready: Callable[..., PrepareReport], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is there and is no model directory .*; choose another folder"):
        ready()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis.txt"]


def test_no_exact_zeros_and_so_no_profile(
    ready: Callable[..., PrepareReport], make_family: Any, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    report = ready(make_family("qwen2", tmp_path / "checkpoints"))
    assert outcomes(report) == {"pack": "done", "profile": "skipped", "plan": "done"}
    skipped = report.steps[1].summary
    assert "silu is never exactly zero" in skipped and f"hybrid calibrate {report.path} --text FILE" in skipped
    assert report.mode == "dense" and not list((report.path / "profiles").iterdir())


def test_another_text_is_counted_anew_and_the_same_is_not(
    ready: Callable[..., PrepareReport], text: Path, tmp_path: Path
) -> None:
    ready(tokens=400)
    assert outcomes(ready(tokens=400)) == {"pack": "kept", "profile": "kept", "plan": "kept"}
    assert outcomes(ready(texts=()))["profile"] == "kept", "no text was asked for"
    assert outcomes(ready(tokens=800)) == {"pack": "kept", "profile": "done", "plan": "done"}
    other = tmp_path / "other.txt"
    other.write_text("0 1 2 3 4 5 6 7 8 9 " * 200)
    assert outcomes(ready(texts=(other,), tokens=800))["profile"] == "done"


def test_a_damaged_profile_is_counted_anew(ready: Callable[..., PrepareReport], tmp_path: Path) -> None:
    ready()
    (tmp_path / "model" / "profiles" / "default.safetensors").write_bytes(b"\0" * 40)
    assert outcomes(ready())["profile"] == "done"


def test_predictors_are_trained_where_there_are_none(ready: Callable[..., PrepareReport], demo_copy: Path) -> None:
    checkpoint = Path(json.loads((demo_copy / "origin.json").read_text())["source"])
    report = prepare(str(checkpoint), demo_copy, PrepareSettings())
    assert outcomes(report)["profile"] == "kept" and report.mode == "predicted"


def test_a_plan_for_other_budgets_is_made_anew(ready: Callable[..., PrepareReport]) -> None:
    small, large = (PlanSettings(vram=size, second_device="cpu") for size in (1 * MIB, 2 * MIB))
    assert outcomes(ready(plan=small))["plan"] == "done"
    assert outcomes(ready(plan=small))["plan"] == "kept"
    report = ready(plan=large)
    assert outcomes(report)["plan"] == "done"
    assert read_plan(report.path / "plans" / "default.json").budgets.vram == 2 * MIB
    assert all("--plan default --second-device cpu" in command for command in report.next)


def test_a_name_that_is_both_a_folder_and_a_hubs(
    ready: Callable[..., PrepareReport], llama_checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(llama_checkpoint, tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    settings = PrepareSettings(texts=(text,), predictors=False)
    prepare("org/tiny", tmp_path / "model", settings, note=notes.append)
    assert "org/tiny is here, so the hub is not asked for it" in notes


def test_a_gguf_file_gives_what_its_checkpoint_gives(
    ready: Callable[..., PrepareReport], llama_checkpoint: Path, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_gguf(llama_checkpoint, tmp_path / "tiny.gguf", kind="bf16")
    report = ready(path, activation="relu")
    assert outcomes(report) == {"pack": "done", "profile": "done", "plan": "done"}
    assert report.source == str(path) and report.mode == "exact"
    assert set(outcomes(ready(path, activation="relu")).values()) == {"kept"}
    with pytest.raises(UserError, match="holds another model than"):
        ready(path, activation="relu2")
