"""Predictors that read what the layer before read: trained, counted, run, and resumed; and others, given, counted."""

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
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_file import read_predictors, write_predictors
from profiler.predictor_outline import PredictorQuality
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
    """A tap over the dense path that names from the state that each predictor reads, by neuron id."""

    def __init__(self, predictors, neurons):
        self.predictors, self.counts, self.states = predictors, np.zeros((len(predictors), neurons), np.int64), {}

    def document(self):
        pass

    def residual(self, layer, states):
        self.states["residual"] = states

    def ffn(self, layer, hidden, activation, named):
        predictor = self.predictors[layer]
        self.states["ffn_input"] = hidden
        self.counts[layer] += predictor.named(self.states[predictor.reads]).sum(0).numpy()
        self.states["previous_ffn_input"] = hidden


def assert_counted_as_by_hand(model, text, predictors):
    """The profile's counts of what was named are those that a plain pass over the text gives."""
    counted = read_profile(model / "profiles" / "default.safetensors")
    with open_engine(model, mode="dense") as engine:
        tap = NamedByHand(predictors.layers, counted.neurons)
        corpus = Corpus.open([text], engine.tokenizer)
        for window in corpus.windows(choose_context(corpus, None, min(engine.context, 2048))):
            engine.hidden_states(window.ids, tap=tap)
    for layer in range(counted.layers):
        found, expected = counted.named[layer], tap.counts[layer]
        assert 0 < found.sum() < found.size * counted.tokens
        assert np.abs(found - expected).sum() <= 0.01 * found.sum()  # logits at the threshold may fall either way


def test_names_are_counted_from_the_layer_before(model, text):
    profile(model, [text], SETTINGS)
    predictors = read_predictors(model / "predictors" / "default.safetensors")
    reads = [p.reads for p in predictors.layers]
    assert reads[0] == "ffn_input" and set(reads[1:]) == {"previous_ffn_input"}
    assert_counted_as_by_hand(model, text, predictors)


@pytest.mark.parametrize("reads", [("residual",) * 3, ("residual", "previous_ffn_input", "ffn_input")])
def test_given_predictors_are_counted_with_whatever_they_read(model, text, reads):
    generator = torch.Generator().manual_seed(0)
    with ModelDirectory.open(model) as directory:
        spec, source, target = directory.spec, directory.source_digest, directory.predictors_path("given")
    assert spec.n_layers == len(reads)
    layers = []
    for state in reads:
        shapes = (8, spec.hidden_size), (spec.n_neurons, 8)
        fc1, fc2 = (Matrix.of(torch.randn(*shape, generator=generator).half()) for shape in shapes)
        layers.append(Predictor.low_rank(fc1, fc2, 0.0, reads=state))
    given = PredictorSet(source, tuple(layers), (PredictorQuality(0, 1, 1, 1, 1, 1),) * len(reads))
    write_predictors(target, given)
    profile(model, [text], ProfileSettings(predictors="given"))
    assert_counted_as_by_hand(model, text, given)
    assert read_predictors(model / "predictors" / "default.safetensors").layers[0].reads == "residual"


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
