"""A profiling run that was stopped goes on from its last checkpoint, and comes to the same result."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hybrid.stages import profile_estimate, profile_passes
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.profile_checkpoint import Checkpoint
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors
from profiler.profile import read_profile

SETTINGS = ProfileSettings(rank=4, steps=60)


@pytest.fixture
def model(llama_directory, tmp_path):
    """A model directory of one's own."""
    return shutil.copytree(llama_directory, tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    """Some thousand tokens."""
    path = tmp_path / "text.txt"
    words = ["the ", "brown ", "fox ", "runs ", "over ", "def ", "return ", "x1 ", "(a, b)\n", "neuron "]
    path.write_text("".join(np.random.default_rng(0).choice(words, 1500)))
    return path


@pytest.fixture
def small_rounds(monkeypatch):
    """A sample of some windows, and several rounds beside."""
    monkeypatch.setattr(profile_estimate, "ROUND_TOKENS", 700)
    monkeypatch.setattr("profiler.capture.CaptureLimits.tokens", 1200)


def same(one, other):
    first, second = (read_profile(path / "profiles" / "default.safetensors") for path in (one, other))
    named = [read_predictors(path / "predictors" / "default.safetensors").layers for path in (one, other)]
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("active", "named", "union4", "union16", "parts")
    ) and all(
        a.threshold == b.threshold and all(x.data.equal(y.data) for x, y in zip(a.matrices, b.matrices, strict=True))
        for a, b in zip(*named, strict=True)
    )


def stop_after(monkeypatch, method, times):
    """The checkpoint is written, then the run is interrupted."""
    original = getattr(Checkpoint, method)
    left = [times]

    def stopping(self, *arguments):
        original(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, method, stopping)


@pytest.mark.parametrize(
    ("method", "times", "trained"), [("save_layer", 2, 1), ("save_layer", 3, 0), ("save_round", 2, 0)]
)
def test_an_interrupted_run_goes_on(model, text, tmp_path, monkeypatch, small_rounds, method, times, trained):
    whole = shutil.copytree(model, tmp_path / "whole")
    assert profile(whole, [text], SETTINGS).estimate.rounds > 2
    notes, layers = [], []
    with monkeypatch.context() as patch:
        stop_after(patch, method, times)
        with pytest.raises(KeyboardInterrupt):
            profile(model, [text], SETTINGS, note=notes.append)
    assert "the same command goes on" in notes[-1]
    search = profile_passes.search
    monkeypatch.setattr(profile_passes, "search", lambda *a: layers.append(1) or search(*a))
    report = profile(model, [text], SETTINGS, note=notes.append)
    assert len(layers) == trained
    assert any("going on from the last checkpoint" in line for line in report.notes)
    assert same(model, whole)
    assert not list(model.rglob(".*"))


def test_other_settings_or_another_text_start_afresh(model, text, monkeypatch, small_rounds):
    for settings, more in [(ProfileSettings(rank=4, steps=60, seed=1), ""), (SETTINGS, "more")]:
        with monkeypatch.context() as patch:
            stop_after(patch, "save_layer", 1)
            with pytest.raises(KeyboardInterrupt):
                profile(model, [text], SETTINGS)
        text.write_text(text.read_text() + more)
        report = profile(model, [text], settings)
        assert any("was dropped" in line for line in report.notes)
    assert not list(model.rglob(".*"))


def test_a_damaged_checkpoint_is_named(model, text, monkeypatch, small_rounds):
    with monkeypatch.context() as patch:
        stop_after(patch, "save_layer", 1)
        with pytest.raises(KeyboardInterrupt):
            profile(model, [text], SETTINGS)
    folder = model / "profiles" / ".default.unfinished"
    states = folder / json.loads((folder / "run.json").read_text())["progress"]["states"]
    states.write_bytes(states.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged; remove it"):
        profile(model, [text], SETTINGS)
    (folder / "run.json").write_text("{")
    report = profile(model, [text], SETTINGS)
    assert any("before its first checkpoint" in line for line in report.notes)


def test_an_early_failure_leaves_nothing(model, text, monkeypatch):
    def fail(*_):
        raise UserError("as if")

    monkeypatch.setattr(profile_passes, "search", fail)
    with pytest.raises(UserError, match="as if"):
        profile(model, [text], SETTINGS)
    assert not list(model.rglob(".*"))


LONGER = ProfileSettings(rank=4, steps=400)
SCRIPT = """
import sys
from pathlib import Path
from hybrid.stages.profile import ProfileSettings, profile
profile(Path(sys.argv[1]), [Path(sys.argv[2])], ProfileSettings(rank=4, steps=400))
"""


def start(model, *command):
    """A process of its own that profiles, once its first layer is in the checkpoint."""
    running = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = model / "profiles" / ".default.unfinished" / "run.json"
    while running.poll() is None and not (found.is_file() and '"layers": 0' not in found.read_text()):
        time.sleep(0.01)
    assert running.poll() is None, running.communicate()[1]
    return running


def test_a_killed_run_goes_on(model, text, tmp_path):
    whole = shutil.copytree(model, tmp_path / "whole")
    profile(whole, [text], LONGER)
    running = start(model, "-c", SCRIPT, model, text)
    with pytest.raises(UserError, match="another process is writing"):
        profile(model, [text], LONGER)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    notes = []
    profile(model, [text], LONGER, note=notes.append)
    assert any("going on from the last checkpoint" in line for line in notes)
    assert same(model, whole)


def test_an_interrupt_says_how_to_go_on(model, text):
    running = start(model, "-m", "hybrid.cli", "profile", model, "--text", text, "--rank", "4")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
