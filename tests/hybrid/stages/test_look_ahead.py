"""Predictors that read what the layer before read: trained, counted, run, and resumed."""

import shutil

import numpy as np
import pytest
import torch

from hybrid.stages import profile_estimate, profile_passes
from hybrid.stages.opening import open_engine
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.profile_text import choose_context
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from profiler.predictor_file import read_predictors
from profiler.profile import read_profile

SETTINGS = ProfileSettings(rank=4, steps=40, look_ahead=True)


@pytest.fixture
def model(llama_directory, tmp_path, monkeypatch):
    """A model directory of one's own; a sample of some windows, and several rounds beside."""
    monkeypatch.setattr(profile_estimate, "ROUND_TOKENS", 700)
    monkeypatch.setattr("profiler.capture.CaptureLimits.tokens", 1200)
    return shutil.copytree(llama_directory, tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = ["the ", "brown ", "fox ", "runs ", "over ", "def ", "return ", "x1 ", "(a, b)\n", "neuron "]
    path.write_text("".join(np.random.default_rng(0).choice(words, 1200)))
    return path


class NamedByHand:
    """A tap over the dense path that names from what was read a layer earlier, by neuron id."""

    def __init__(self, predictors, neurons):
        self.predictors, self.counts, self.before = predictors, np.zeros((len(predictors), neurons), np.int64), None

    def document(self):
        pass

    def ffn(self, layer, hidden, activation, named):
        predictor = self.predictors[layer]
        read = self.before if predictor.reads == "previous_ffn_input" else hidden
        self.counts[layer] += predictor.named(read).sum(0).numpy()
        self.before = hidden


def test_names_are_counted_from_the_layer_before(model, text):
    profile(model, [text], SETTINGS)
    predictors = read_predictors(model / "predictors" / "default.safetensors")
    reads = [p.reads for p in predictors.layers]
    assert reads[0] == "ffn_input" and set(reads[1:]) == {"previous_ffn_input"}
    counted = read_profile(model / "profiles" / "default.safetensors")
    with open_engine(model, mode="dense") as engine:
        tap = NamedByHand(predictors.layers, counted.neurons)
        corpus = Corpus.open([text], engine.tokenizer)
        for window in corpus.windows(choose_context(corpus, None, min(engine.context, 2048))):
            engine.hidden_states(window.ids, tap=tap)
    assert 0 < counted.named.sum() < counted.named.size * counted.tokens
    assert np.abs(counted.named - tap.counts).sum() <= 0.01 * counted.named.sum()  # logits at the threshold may fall


def test_such_a_model_decodes_as_it_is_evaluated(model, text):
    profile(model, [text], SETTINGS)
    with open_engine(model, mode="predicted") as engine:
        ids = engine.tokenizer.encode(text.read_text())[:40]
        whole, single = engine.logits(ids), engine.logits(ids, one_by_one=True)
    scale = whole.abs().max()
    assert float(((whole - single).abs().amax(1) < 0.02 * scale).float().mean()) > 0.9


def test_a_run_that_was_stopped_goes_on_to_the_same(model, text, tmp_path, monkeypatch):
    whole = shutil.copytree(model, tmp_path / "whole")
    profile(whole, [text], SETTINGS)
    original = profile_passes.Passes.train_layer

    def stop(self, samples, layer, recipe, ahead):
        if layer == 1:
            raise KeyboardInterrupt
        return original(self, samples, layer, recipe, ahead)

    monkeypatch.setattr(profile_passes.Passes, "train_layer", stop)
    with pytest.raises(KeyboardInterrupt):
        profile(model, [text], SETTINGS)
    monkeypatch.setattr(profile_passes.Passes, "train_layer", original)
    profile(model, [text], SETTINGS)
    one, other = (read_profile(path / "profiles" / "default.safetensors") for path in (whole, model))
    assert np.array_equal(one.named, other.named) and np.array_equal(one.active, other.active)
    layers = [read_predictors(path / "predictors" / "default.safetensors").layers for path in (whole, model)]
    assert all(torch.equal(a.fc2.data, b.fc2.data) for a, b in zip(*layers, strict=True))


def test_the_layer_before_says_less_than_the_own_state(model, text):
    assert ModelDirectory.open(model).spec.n_layers > 1
    profile(model, [text], SETTINGS)
    ahead = read_predictors(model / "predictors" / "default.safetensors").quality
    profile(model, [text], ProfileSettings(rank=4, steps=40))
    own = read_predictors(model / "predictors" / "default.safetensors").quality
    assert ahead[0].named == pytest.approx(own[0].named, abs=0.01)
    assert all(0.9 < quality.mass_recall <= 1 for quality in ahead)
