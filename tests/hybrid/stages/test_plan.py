"""`hybrid plan`: what it reads of a model directory, and what it refuses. What it decides is tested in placement."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hybrid.stages.plan import PlanSettings, plan
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_file import write_predictors
from profiler.predictor_outline import PredictorQuality
from profiler.profile import Profile, write_profile

SETTINGS = PlanSettings(vram=1 << 20, context=64)
QUALITY = PredictorQuality(tokens=1, active=0.5, named=0.5, recall=1.0, precision=1.0, mass_recall=1.0)


@pytest.fixture
def model(llama_directory, tmp_path):
    """A model of three layers with a profile, its rows reordered."""
    path = shutil.copytree(llama_directory, tmp_path / "model")
    files, generator = ModelFiles.open_files(path), np.random.default_rng(0)
    shape = (files.spec.n_layers, files.spec.n_neurons)
    counts = generator.integers(0, 101, shape)
    profile = Profile(files.source_digest, "0" * 64, 100, counts, counts, counts, counts, has_predictors=True)
    write_profile(files.profile_path("default"), profile)
    for layer in range(shape[0]):
        files.reorder_layer(layer, profile.hottest_first(layer))
    return path


def predictors_of(files):
    """A perceptron with a bias, no predictor, and gates."""
    hidden, neurons = files.spec.hidden_size, files.spec.n_neurons
    fc1, fc2 = (Matrix.of(torch.ones(size).half()) for size in ((7, hidden), (neurons, 7)))
    layers = (
        Predictor.low_rank(fc1, fc2, 0.0, bias=torch.zeros(neurons)),
        Predictor.none(hidden, neurons),
        Predictor.gates(Matrix.of(torch.ones(neurons, hidden).bfloat16()), 0.0),
    )
    return PredictorSet(files.source_digest, layers, (QUALITY,) * 3)


def test_predictors_are_counted_as_they_are_stored(model):
    files = ModelFiles.open_files(model)
    predictors = predictors_of(files)
    write_predictors(files.predictors_path("default"), predictors)
    found = plan(model, SETTINGS).plan
    assert found.mode == "predicted"
    assert sum(taken["predictors"] for taken in found.bytes.values()) == predictors.nbytes
    assert predictors.nbytes == 2 * 7 * (60 + 123) + 4 * 123 + 2 * 60 * 123
    with ModelDirectory.open(model) as directory:
        assert found.digests.row_order == directory.row_order_digest()
        assert found.digests.pack == directory.pack_digest


def test_without_predictors_the_mode_needs_none(model):
    assert plan(model, SETTINGS).plan.mode == "exact"
    with pytest.raises(UserError, match="predicted mode needs predictors"):
        plan(model, replace(SETTINGS, mode="predicted"))


def test_predictors_of_another_model_are_refused(model):
    files = ModelFiles.open_files(model)
    path, whole = files.predictors_path("default"), predictors_of(files)
    write_predictors(path, replace(whole, source_digest="f" * 64))
    with pytest.raises(UserError, match=r"made for another model.*hybrid profile"):
        plan(model, SETTINGS)
    write_predictors(path, replace(whole, layers=whole.layers[:2], quality=(QUALITY,) * 2))
    with pytest.raises(UserError, match=r"sizes are not the model's.*hybrid profile"):
        plan(model, SETTINGS)
    write_predictors(path, whole)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged.*hybrid profile"):
        plan(model, SETTINGS)


@pytest.mark.parametrize("options", [{"kv_format": "f8"}, {"mode": "guessed"}])
def test_settings_that_are_not_known_are_refused(options):
    with pytest.raises(UserError, match=r"is not known; (formats|modes) are"):
        PlanSettings(vram=0, **options)


def test_a_model_without_a_profile_is_told_to_be_profiled(llama_directory):
    with pytest.raises(UserError, match=r"no profile at .*hybrid profile"):
        plan(llama_directory, SETTINGS)


def test_what_a_killed_writer_left_is_removed(model):
    left = model / "plans" / ".default.json.partial-123"
    left.write_text("{")
    plan(model, SETTINGS)
    assert not left.exists()
    assert (model / "plans" / "default.json").is_file()
