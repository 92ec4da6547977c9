"""`hybrid eval` as a stage: what is stored and when it is stale, and what a reader has to be told."""

import json
import shutil
from dataclasses import replace

import pytest

from hybrid.reports import evaluation_lines
from hybrid.stages.evaluate import EvaluationSettings, evaluate
from hybrid.stages.inspect import inspect
from hybrid.stages.plan import PlanSettings, plan
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.shipped import HELDOUT_TEXT
from hybrid.store.evaluation_file import read_evaluation
from profiler.artifacts import UserError, directory_lock
from profiler.predictor_file import read_predictors, write_predictors


def write_texts(path, numbers):
    """One document a line, each of about sixty tokens."""
    lines = [json.dumps({"text": f"Numbers {i}, {i * i} and {i + 7}: the dog reads a file. " * 4}) for i in numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def profiled(llama_directory, tmp_path_factory):
    """A tiny model with a profile of twenty-four documents."""
    folder = tmp_path_factory.mktemp("profiled")
    shutil.copytree(llama_directory, folder / "model")
    texts = write_texts(folder / "profile.jsonl", range(24))
    profile(folder / "model", [texts], ProfileSettings(rank=8, steps=100))
    return folder


@pytest.fixture
def model(profiled, tmp_path):
    return shutil.copytree(profiled / "model", tmp_path / "model")


def silence(model):
    """Replace a model's predictors by ones that name nothing."""
    path = model / "predictors" / "default.safetensors"
    write_predictors(path, replace(read_predictors(path), path=None).silenced())


def settings(**more):
    return EvaluationSettings(context=64, layer_tokens=200, **more)


def test_all_modes_are_measured_and_kept(model, tmp_path):
    texts = write_texts(tmp_path / "report.jsonl", range(100, 124))
    report = evaluate(model, [texts], settings())
    evaluation = report.evaluation
    assert [mode.mode for mode in evaluation.modes] == ["dense", "exact", "predicted"]
    assert read_evaluation(report.path) == evaluation
    assert evaluation.text.documents == len(evaluation.documents) == 24
    assert evaluation.text.tokens == sum(document.tokens for document in evaluation.documents)
    dense, exact, predicted = evaluation.modes
    assert exact.quality.ratio == pytest.approx(1, abs=1e-6)
    assert exact.quality.interval.low <= 1 <= exact.quality.interval.high
    gap = (sum(predicted.losses) - sum(dense.losses)) / evaluation.text.tokens
    assert predicted.quality.ratio == pytest.approx(1 + gap, rel=1e-2)
    assert sum(predicted.divergences) == pytest.approx(predicted.quality.divergence * evaluation.text.tokens)
    assert predicted.quality.interval.documents == 24
    assert 150 <= evaluation.layer_tokens == predicted.layers[0].tokens <= 300
    assert not any("warning" in note for note in evaluation.notes)
    assert inspect(model).evaluations[0].headlines == tuple(evaluation.headlines())
    shown = evaluation_lines(report, False)
    assert sum("predicted, layer" in line for line in shown) == 1
    assert not any("exact, layer" in line for line in shown)
    assert sum("exact, layer" in line for line in evaluation_lines(report, True)) == 1


def test_documents_that_were_trained_on_are_told(model, tmp_path):
    texts = write_texts(tmp_path / "report.jsonl", [*range(100, 120), 3, 4])
    notes = evaluate(model, [texts], settings(modes=("predicted",))).evaluation.notes
    (warning,) = [note for note in notes if "warning" in note]
    assert "2 of 22 documents" in warning
    assert "report.jsonl, line 21" in warning
    plain = tmp_path / "one.txt"
    plain.write_text(json.loads(texts.read_text().splitlines()[-1])["text"])
    notes = evaluate(model, [plain], settings(modes=("exact",))).evaluation.notes
    assert any("1 of 1 documents" in note for note in notes), "the same text in another file"


def test_it_is_stale_when_predictors_are_made_anew(model, tmp_path):
    texts = write_texts(tmp_path / "report.jsonl", range(100, 110))
    evaluate(model, [texts], settings(name="all"))
    evaluate(model, [texts], settings(name="exact", modes=("exact",)))
    silence(model)
    whole, exact = inspect(model).evaluations
    assert "predictors were made anew" in whole.problem and not whole.headlines
    assert exact.problem is None


def test_one_file_has_an_interval_and_a_short_one_says_why_not(model, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("".join(f"def add_{i}(left, right): return left + {i}\n" for i in range(80)))
    evaluation = evaluate(model, [long], settings()).evaluation
    assert evaluation.modes[1].quality.interval.documents == len(evaluation.documents) >= 15
    assert any("were cut" in note for note in evaluation.notes)
    short = tmp_path / "short.txt"
    short.write_text("The brown fox runs over the lazy dog. Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 1999.")
    evaluation = evaluate(model, [short], settings()).evaluation
    assert evaluation.modes[1].quality.interval is None
    assert any("no interval" in note for note in evaluation.notes)
    empty = tmp_path / "a.txt"
    empty.write_text(" \n")
    with pytest.raises(UserError, match=r"too short|empty"):
        evaluate(model, [empty], settings())


def test_what_cannot_be_stored_is_still_told(model, tmp_path):
    texts = write_texts(tmp_path / "report.jsonl", range(100, 108))
    with directory_lock(model, "test"):
        report = evaluate(model, [texts], settings(modes=("exact",)))
    assert report.path is None
    assert "not stored" in report.evaluation.notes[-1]
    assert not list((model / "evaluations").glob("*.json"))


def test_names_and_modes_are_checked_before_anything_is_measured(model, llama_directory, tmp_path):
    with pytest.raises(UserError, match="no name"):
        evaluate(model, [tmp_path], settings(name="../up"))
    with pytest.raises(UserError, match="mode"):
        evaluate(model, [tmp_path], settings(modes=("sparse",)))
    with pytest.raises(UserError, match="hybrid profile"):
        evaluate(llama_directory, [tmp_path], settings(modes=("predicted",)))


def test_placement_changes_no_figure(demo_copy):
    wanted = EvaluationSettings(modes=("predicted",), tokens=300, layer_tokens=300, context=256, kv_format="f32")
    plan(demo_copy, PlanSettings(vram=8 << 20, context=256, name="split", kv_format="f32"))
    split = evaluate(demo_copy, [HELDOUT_TEXT], replace(wanted, plan="split", device="cpu")).evaluation
    whole = evaluate(demo_copy, [HELDOUT_TEXT], wanted).evaluation
    for one, other in zip(split.modes, whole.modes, strict=True):
        assert one.quality.perplexity == pytest.approx(other.quality.perplexity, rel=1e-4)
        for here, there in zip(one.layers, other.layers, strict=True):
            assert vars(here) == pytest.approx(vars(there), abs=1e-3)


def test_silenced_predictors_carry_no_mass_and_ruin_perplexity(demo_copy):
    silence(demo_copy)
    wanted = EvaluationSettings(modes=("predicted",), tokens=1500, layer_tokens=500)
    predicted = evaluate(demo_copy, [HELDOUT_TEXT], wanted).evaluation.modes[1]
    assert predicted.quality.ratio > 3
    assert predicted.quality.divergence > 0.5
    for layer in predicted.layers:
        assert (layer.named, layer.recall, layer.mass_recall, layer.dropped_mass) == (0, 0, 0, 1)
        assert layer.active > 0
