import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid import cli
from hybrid.stages.report import report
from hybrid.stages.report_data import collect
from hybrid.stages.report_quality import model, quality
from hybrid.stages.report_sections import placement
from hybrid.store.evaluation_file import (
    EvaluatedDocument,
    EvaluatedText,
    Evaluation,
    ModeEvaluation,
    current_digests,
    write_evaluation,
)
from hybrid.store.files import ModelFiles
from placement.plan import PURPOSES, Budgets, Digests, Expected, LayerPlan, Plan, Segment
from placement.plan_file import write_plan
from profiler.artifacts import UserError
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_file import read_predictors, write_predictors
from profiler.predictor_outline import PredictorQuality, Trial
from profiler.profile import Profile, compact, write_profile
from profiler.quality import Interval, LayerQuality, Quality
from profiler.thresholds import LayerThreshold, Thresholds, write_thresholds

SECTIONS = ["model", "hotness", "frequency", "predictors", "plan", "quality", "thresholds"]
EVIL = "<script>alert(1)</script>\"' onload=x $\\frac{"
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, their attributes and the text; every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def tags(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(path: Path) -> Page:
    """Read a page; it needs nothing from elsewhere and runs nothing, and every reference in it is to one element."""
    page = Page(path.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject", "img"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action"):
            target = attributes.get(name, "#")
            assert target.startswith("data:image/png;base64,") or target[1:] in ids or target == "#", (tag, target)
        clip = re.match(r"url\(#(.*)\)", attributes.get("clip-path", ""))
        assert clip is None or clip[1] in ids
    return page


def fill(path: Path, name: str = "code") -> None:
    """Give a model directory one of everything; `name` stands wherever a file may hold a text of its own."""
    files = ModelFiles.open_files(path)
    layers, neurons, hidden = files.spec.n_layers, files.spec.n_neurons, files.spec.hidden_size
    generator = np.random.default_rng(0)
    parts = generator.integers(0, 101, (2, 2, layers, neurons))
    active = parts.sum((0, 1))
    counts = dict.fromkeys(("named", "union4", "union16"), active)
    domains = {"domains": (name, "prose"), "part_tokens": ((100, 100),) * 2, "parts": compact(parts)}
    write_profile(
        files.profile_path("default"),
        Profile(files.source_digest, "c", 400, active, **counts, has_predictors=True, **domains),
    )

    def predictor() -> Predictor:
        fc1, fc2 = (Matrix.of(torch.randn(shape).half()) for shape in ((8, hidden), (neurons, 8)))
        return Predictor.low_rank(fc1, fc2, 0.5)

    trials = (Trial("none", 0, (), 0, 1.0, 1.0, 9e4), Trial("perceptron", 8, ("f16", name), 999, 0.97, 0.5, 5e4, True))
    predictors = PredictorSet(
        files.source_digest,
        tuple(predictor() for _ in range(layers)),
        (PredictorQuality(50, 0.5, 0.5, 0.9, 0.9, 0.99),) * layers,
        (trials,) * layers,
    )
    write_predictors(files.predictors_path("default"), predictors)
    split = (Segment(0, 20, "gpu", "gpu"), Segment(20, 60, "ram", "cpu"), Segment(60, neurons, "flash", "cpu"))
    digests = Digests(files.pack_digest, files.row_order_digest(), None)
    of_rows = {memory: {**dict.fromkeys(PURPOSES, 0), "neurons": 1 << 30} for memory in ("ram", "flash")}
    sizes = {"gpu": dict.fromkeys(PURPOSES, 1 << 20), **of_rows}
    budgets, expected = Budgets(16 << 20, None, 128), Expected(*[0.001] * 9)
    placed = (True, budgets, neurons, "cpu", "gpu", (LayerPlan("gpu", split),) * layers)
    plan = Plan("predicted", *placed, "default", digests, name, "0" * 64, sizes, expected, None)
    write_plan(files.plan_path("default"), plan)
    cutoffs = (LayerThreshold(0.1, 0.4, 0.98),) * layers
    write_thresholds(files.thresholds_path("half"), Thresholds(files.source_digest, "t", 99, 98, cutoffs, sparsity=0.6))
    measured = Quality(90, 10.01, 1.001, Interval(1.0005, 1.0015, 0.95, 3, 100), 0.99, 0.002, 0.001, 0.003, 0.004)
    by_layer = (LayerQuality(90, 0.5, 0.5, 0.9, 0.9, 0.99, 0.0125),) * layers
    evaluation = Evaluation(
        "default",
        current_digests(files, "default"),
        "default",
        {},
        EvaluatedText((name,), "d", 3, 90),
        (EvaluatedDocument(name, "0", 30),) * 3,
        (
            ModeEvaluation("dense", replace(measured, ratio=1.0, interval=None), (), (1.0,) * 3, (0.0,) * 3, (30,) * 3),
            ModeEvaluation("predicted", measured, by_layer, (1.0,) * 3, (0.1,) * 3, (30,) * 3),
        ),
        90,
        (f"trained on {name}",),
    )
    write_evaluation(files.evaluation_path("default"), evaluation)


@pytest.fixture
def filled(llama_directory, tmp_path) -> Path:
    """A model directory that has one of everything."""
    path = Path(shutil.copytree(llama_directory, tmp_path / "model"))
    fill(path)
    return path


def test_a_page_of_all_sections_and_the_same_pictures_as_png(filled, tmp_path):
    result = report(filled, tmp_path / "out.html", tmp_path / "new" / "png")
    page = check(tmp_path / "out.html")
    assert [section["id"] for section in page.tags("section")] == SECTIONS
    assert result.missing == () and result.bytes == (tmp_path / "out.html").stat().st_size < 1 << 20
    assert len(page.tags("svg")) == len(page.tags("figure")) == len(result.png) == result.pictures == 15
    assert {file.name for file in (tmp_path / "new" / "png").iterdir()} == {file.name for file in result.png}
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in result.png)
    for told in ("400 tokens", "+0.100 %", "+0.050 % to +0.150 %", "1.25 %", "60.00 % inactive", "16.0 MiB"):
        assert told in page.text, told
    assert "+0.10 % perplexity [+0.05, +0.15] on 90 tokens, evaluations/default.json" in page.text  # of the headline
    assert "Not shown" not in page.text


def test_a_directory_that_was_only_packed_names_the_commands(llama_directory, tmp_path):
    result = report(llama_directory, tmp_path / "out.html")
    page = check(tmp_path / "out.html")
    assert [section["id"] for section in page.tags("section")] == SECTIONS
    assert page.tags("svg") == [] and len(result.missing) == 6
    assert "llama" in page.text and page.text.count("Not shown") == 6
    for command in ("profile", "plan", "eval", "calibrate"):
        assert f"hybrid {command} {llama_directory}" in page.text


def test_the_command_says_what_it_wrote_and_what_is_missing(llama_directory, tmp_path, monkeypatch, capsys):
    command = ["hybrid", "report", str(llama_directory), "-o", str(tmp_path / "out.html"), "--profile", "night"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().out.splitlines()
    assert not ended.value.code and shown[-1].startswith(f"{tmp_path / 'out.html'}: 0 pictures, ")
    assert shown[0].endswith(f"hybrid profile {llama_directory} --text FILE --name night") and len(shown) == 5
    check(tmp_path / "out.html")


def test_names_of_others_stay_text(llama_directory, tmp_path):
    path = Path(shutil.copytree(llama_directory, tmp_path / "<img src=x onerror=alert(1)> &amp; 'quoted'"))
    fill(path, EVIL)
    report(path, tmp_path / "out.html")
    page = check(tmp_path / "out.html")
    assert EVIL in page.text and "<img src=x onerror=alert(1)> &amp; 'quoted'" in page.text


def test_files_of_others_that_are_wrong_do_not_keep_the_rest_from_being_shown(filled, tmp_path):
    evaluation = json.loads((filled / "evaluations" / "default.json").read_text())
    evaluation["text"] |= {"tokens": "many", "documents": [1], "paths": [{"a": "\ud800"}]}
    evaluation["modes"][1]["quality"] |= {"ratio": 1e300, "perplexity": 1.7e308}
    (filled / "evaluations" / "odd.json").write_text(json.dumps(evaluation))
    evaluation["modes"][1]["quality"]["ratio"] = 10**400
    (filled / "evaluations" / "vast.json").write_text(json.dumps(evaluation))
    (filled / "thresholds" / "broken.json").write_text("{")
    (filled / "profiles" / "default.safetensors").write_bytes(b"x" * 100)
    result = report(filled, tmp_path / "out.html")
    page = check(tmp_path / "out.html")
    assert [missing.command.split()[1] for missing in result.missing] == ["profile", "profile"]
    assert "vast.json is damaged" in page.text and "broken.json is not valid JSON" in page.text
    assert "predicted (default)" in page.text
    assert "many tokens" in page.text


def test_what_is_of_another_time_says_so(filled):
    files = ModelFiles.open_files(filled)
    for layer in range(files.spec.n_layers):
        files.reorder_layer(layer, files.neuron_ids(layer)[::-1].copy())
    predictors = files.predictors_path("default")
    write_predictors(predictors, read_predictors(predictors).with_thresholds([0.6] * files.spec.n_layers))
    data = collect(filled)
    assert "the rows were profiled anew since it was made" in placement(data).warnings[0]
    assert "evaluations/default.json is stale: the predictors were made anew since" in quality(data).warnings[0]
    assert [model(data).tables[1].rows[2][0], model(data).tables[1].rows[2][2][:12]] == ["predicted", "not measured"]


def test_without_matplotlib_it_says_what_to_install(llama_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'matplotlib"):
        report(llama_directory, tmp_path / "out.html")


def test_a_page_that_cannot_be_written_is_explained_and_nothing_is_left(llama_directory, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        report(llama_directory, tmp_path / "nowhere" / "out.html")
    with pytest.raises(UserError, match="cannot write"):
        report(llama_directory, tmp_path)
    assert list(tmp_path.iterdir()) == []
