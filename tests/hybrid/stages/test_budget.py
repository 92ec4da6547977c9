"""Thresholds within a budget of perplexity, found by the engine and stored with the model."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from hybrid import cli
from hybrid.stages.budget import BudgetSettings, as_cutoffs, fit, parse_budget
from hybrid.stages.evaluate import EvaluationSettings, evaluate
from hybrid.stages.pack import pack
from hybrid.stages.profile import ProfileSettings, profile
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors
from profiler.profile import read_profile
from profiler.thresholds import read_thresholds


def write_texts(path, numbers):
    """One document a line, each of about sixty tokens."""
    lines = [json.dumps({"text": f"Numbers {i}, {i * i} and {i + 7}: the dog reads a file. " * 4}) for i in numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(llama_directory, make_llama, tmp_path_factory):
    """A tiny profiled ReLU model, one with SiLU, and a text to calibrate on."""
    folder = tmp_path_factory.mktemp("budget")
    shutil.copytree(llama_directory, folder / "relu")
    profile(folder / "relu", [write_texts(folder / "profile.jsonl", range(24))], ProfileSettings(rank=16, steps=40))
    pack(make_llama(folder, hidden_act="silu"), folder / "silu")
    write_texts(folder / "calibrate.jsonl", range(50, 62))
    return folder


@pytest.fixture
def relu(folder, tmp_path):
    return shutil.copytree(folder / "relu", tmp_path / "relu")


@pytest.fixture
def silu(folder, tmp_path):
    return shutil.copytree(folder / "silu", tmp_path / "silu")


def test_predictors_get_thresholds_that_keep_the_budget_on_the_text(relu, folder):
    before = read_predictors(relu / "predictors" / "default.safetensors")
    text = folder / "calibrate.jsonl"
    report = fit(relu, [text], BudgetSettings(budget=0.02))
    after = read_predictors(report.path)
    assert after.thresholds == pytest.approx(report.search.found.thresholds)
    assert after.thresholds != before.thresholds
    assert [p.nbytes for p in after.layers] == [p.nbytes for p in before.layers]
    evaluation = evaluate(relu, [text], EvaluationSettings(modes=("predicted",))).evaluation
    assert any("12 of 12 documents" in note and "thresholds set" in note for note in evaluation.notes)
    measured = evaluation.modes[1].quality
    assert measured.ratio == pytest.approx(report.search.found.ratio, abs=1e-6)
    assert measured.interval.high <= 1.02


def test_what_is_named_now_goes_into_quality_and_profile(relu, folder):
    report = fit(relu, [folder / "calibrate.jsonl"], BudgetSettings(budget=0.02))
    after = read_predictors(report.path)
    counted = read_profile(relu / "profiles" / "default.safetensors")
    for layer, quality in enumerate(after.quality):
        assert quality.named == pytest.approx(report.layers[layer].named)
        assert quality.named == pytest.approx(report.search.found.shares[layer], abs=0.06)  # states have changed since
        assert counted.frequency("named")[layer].mean() == pytest.approx(quality.named, abs=1e-3)


def test_every_layer_keeps_the_least_mass_that_is_asked_for(relu, folder):
    report = fit(relu, [folder / "calibrate.jsonl"], BudgetSettings(budget=0.5, least_mass=0.98))
    assert min(report.search.found.masses) >= 0.98
    assert min(layer.mass_recall for layer in report.layers) > 0.97


def test_cutoffs_of_a_model_without_zeros_keep_the_budget(silu, folder):
    report = fit(silu, [folder / "calibrate.jsonl"], BudgetSettings(budget=0.05))
    stored = read_thresholds(report.path)
    assert (report.mode, stored.budget, stored.sparsity) == ("threshold", 0.05, None)
    assert stored.cutoffs == pytest.approx(as_cutoffs(report.search.found.thresholds))
    assert report.search.found.upper <= 1.05
    assert 0.02 < report.search.found.share < 0.98
    assert report.search.found.share == pytest.approx(stored.active, abs=0.1)
    assert len(stored.documents) == 12


def test_the_command_searches_and_reports_on_other_documents(relu, folder, tmp_path):
    other = write_texts(tmp_path / "report.jsonl", range(200, 212))
    arguments = ["eval", str(relu), "--text", str(other), "--budget", "2%", "--mode", "predicted"]
    found = CliRunner().invoke(cli.app, [*arguments, "--calibrate", str(folder / "calibrate.jsonl")])
    assert found.exit_code == 0, found.output
    assert "taken" in found.output and "within 2.000% of dense perplexity" in found.output
    assert "over dense" in found.output
    calibrated = CliRunner().invoke(
        cli.app, ["calibrate", str(relu), "--text", str(folder / "calibrate.jsonl"), "--budget", "2%", "--json"]
    )
    assert json.loads(calibrated.output)["search"]["budget"] == 0.02


def test_budgets_are_read_as_people_write_them():
    assert parse_budget("0.1%") == pytest.approx(0.001)
    assert parse_budget(" 0.002 ") == pytest.approx(0.002)
    for wrong in ("", "%", "a lot", "0", "-1%", "200%", "nan"):
        with pytest.raises(UserError, match="budget"):
            parse_budget(wrong)


def test_impossible_searches_are_refused(silu, relu, folder):
    text = [folder / "calibrate.jsonl"]
    with pytest.raises(UserError, match="no predictors"):
        fit(silu, text, BudgetSettings(budget=0.01, mode="predicted"))
    with pytest.raises(UserError, match="has no thresholds"):
        BudgetSettings(budget=0.01, mode="exact")
    for wrong in ({"budget": 0.0}, {"budget": 0.1, "least_mass": 1.0}, {"budget": 0.1, "tokens": 0}):
        with pytest.raises(UserError):
            BudgetSettings(**wrong)
    with pytest.raises(UserError, match="no thresholds keep within"):
        fit(relu, text, BudgetSettings(budget=1e-9))
