"""Evaluations as files: written and read alike, refused when damaged, and stale when the model is another."""

import json
from dataclasses import replace

import pytest

from hybrid.store.evaluation_file import (
    EvaluatedDocument,
    EvaluatedText,
    Evaluation,
    ModeEvaluation,
    current_digests,
    read_evaluation,
    why_stale,
    write_evaluation,
)
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError
from profiler.quality import Interval, LayerQuality, Quality

INTERVAL = Interval(1.0002, 1.0008, 0.95, 40, 10_000)
QUALITY = Quality(58_000, 13.62, 1.0005, INTERVAL, 0.98, 0.001, 0.0005, 0.003, 0.009)
LAYER = LayerQuality(8000, 0.1, 0.2, 0.9, 0.5, 0.99, 0.01)


@pytest.fixture
def evaluation(llama_directory):
    dense = replace(QUALITY, ratio=1.0, interval=None, agreement=1.0)
    return Evaluation(
        name="default",
        digests=current_digests(ModelFiles.open_files(llama_directory), None),
        profile="default",
        settings={"context": 512, "plan": None},
        text=EvaluatedText(("texts",), "0" * 64, 2, 58_000),
        documents=(EvaluatedDocument("a", "0" * 16, 30_000), EvaluatedDocument("b", "1" * 16, 28_000)),
        modes=(
            ModeEvaluation("dense", dense, (), (78_000.0, 73_000.0), (0.0, 0.0), (30_000, 28_000)),
            ModeEvaluation("predicted", QUALITY, (LAYER, LAYER), (78_020.0, 73_009.0), (30.0, 28.0), (29_000, 27_500)),
        ),
        layer_tokens=8000,
        notes=("a note",),
    )


def test_it_comes_back_as_it_was_written(evaluation, tmp_path):
    write_evaluation(tmp_path / "default.json", evaluation)
    assert read_evaluation(tmp_path / "default.json") == evaluation
    assert [path.name for path in tmp_path.iterdir()] == ["default.json"]


def test_the_headline_says_what_a_mode_costs(evaluation):
    assert evaluation.headlines() == ["predicted: +0.05 % perplexity [+0.02, +0.08] on 58,000 tokens"]
    alone = replace(evaluation, modes=evaluation.modes[:1])
    assert alone.headlines() == ["dense: perplexity 13.6200 on 58,000 tokens"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body.pop("modes"), "missing"),
        (lambda body: body.update(modes=[]), "every mode"),
        (lambda body: body.update(documents=body["documents"][:1]), "every mode has figures"),
        (lambda body: body["modes"][1]["losses"].pop(), "a loss"),
        (lambda body: body["modes"][1]["losses"].__setitem__(0, "much"), "no figure"),
        (lambda body: body["modes"][1]["quality"].update(agreement=1.5), "agreement"),
        (lambda body: body["modes"][1]["quality"]["interval"].update(low=2.0), "upper end"),
        (lambda body: body["modes"][1]["layers"][0].update(recall=-0.1), "recall"),
        (lambda body: body["modes"][1].update(extra=1), "extra"),
        (lambda body: body.update(digests=["source"]), "which model"),
        (lambda body: body.update(text="all"), "damaged"),
        (lambda body: body.update(profile={"name": "default"}), "what was evaluated"),
        (lambda body: body.update(settings=[]), "what was evaluated"),
        (lambda body: body.update(kind="plan"), "is not a evaluation file"),
        (lambda body: body.update(format_version=2), "newer"),
    ],
)
def test_what_is_damaged_is_refused(evaluation, tmp_path, change, said):
    path = tmp_path / "default.json"
    write_evaluation(path, evaluation)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=said):
        read_evaluation(path)


def test_it_is_stale_where_a_digest_differs(evaluation, llama_directory, opt_directory, tmp_path):
    files = ModelFiles.open_files(llama_directory)
    assert why_stale(evaluation, files) is None
    assert "another checkpoint" in why_stale(evaluation, ModelFiles.open_files(opt_directory))
    repacked = replace(evaluation, digests={**evaluation.digests, "pack": "0" * 64})
    assert "packed anew" in why_stale(repacked, files)
    predicted = replace(evaluation, digests={**evaluation.digests, "predictors": "0" * 64})
    assert "predictors were made anew" in why_stale(predicted, files)
