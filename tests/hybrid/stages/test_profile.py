"""`hybrid profile` as a stage: what is counted, in how many rounds, and what it says of odd models and texts."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages import profile_estimate
from hybrid.stages.pack import pack
from hybrid.stages.profile import ProfileSettings, profile
from hybrid.stages.texts import Corpus
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.predictor_file import read_predictors
from profiler.profile import read_profile

COUNTS = ("active", "named", "union4", "union16")
PLAIN = ProfileSettings(train=False)


@pytest.fixture
def model(llama_directory, tmp_path):
    """A model directory of one's own."""
    return shutil.copytree(llama_directory, tmp_path / "model")


@pytest.fixture
def texts(tmp_path):
    """Two kinds of text, some thousand tokens."""
    generator = np.random.default_rng(0)
    words = ["the ", "brown ", "fox ", "runs ", "over ", "def ", "return ", "x1 ", "(a, b)\n", "neuron "]
    (tmp_path / "prose.txt").write_text("".join(generator.choice(words[:6], 900)))
    lines = [json.dumps({"text": "".join(generator.choice(words[4:], 40))}) for _ in range(25)]
    (tmp_path / "code.jsonl").write_text("\n".join(lines))
    return [tmp_path / "prose.txt", tmp_path / "code.jsonl"]


class Counting:
    """A tap over the dense path that counts by hand, by neuron id."""

    def __init__(self, directory):
        self.orders = [torch.from_numpy(directory.layer(i).neuron_ids).long() for i in range(directory.spec.n_layers)]
        self.active = np.zeros((len(self.orders), directory.spec.n_neurons), dtype=np.int64)
        self.named = self.active.copy()
        self.predictors = None

    def document(self):
        pass

    def ffn(self, layer, hidden, activation, named):
        self.active[layer, self.orders[layer]] += (activation != 0).sum(0).numpy()
        if self.predictors is not None:
            self.named[layer] += self.predictors.layers[layer].named(hidden).sum(0).numpy()


def by_hand(path, texts, context, predictors=None):
    """Counts of the dense path over the same windows, each by itself."""
    with Engine(ModelDirectory.open(path), EngineOptions(mode="dense", context=context)) as engine:
        tap = Counting(engine.directory)
        tap.predictors = predictors
        windows = list(Corpus.open(texts, engine.tokenizer).windows(context))
        for window in windows:
            engine.hidden_states(window.ids, tap=tap)
    return tap, windows


def context_of(report, path):
    spec = ModelDirectory.open(path).spec
    return min(spec.max_positions, 2048)


def test_counts_and_names_are_those_of_the_dense_path(model, texts, monkeypatch):
    monkeypatch.setattr(profile_estimate, "ROUND_TOKENS", 700)
    monkeypatch.setattr("profiler.capture.CaptureLimits.tokens", 1200)
    report = profile(model, texts, ProfileSettings(rank=4, steps=60))
    counted = read_profile(ModelDirectory.open(model).profile_path("default"))
    predictors = read_predictors(ModelDirectory.open(model).predictors_path("default"))
    size = sum(path.stat().st_size for path in texts)
    tap, windows = by_hand(model, texts, max(16, min(256, size // 3 // 16)), predictors)
    tokens = sum(len(w.ids) for w in windows)
    assert report.tokens == counted.tokens == tokens > 2500
    assert report.estimate.rounds >= 2
    assert report.estimate.sample_tokens <= 1200
    # Summation orders differ, so a gate next to zero may open on one side only.
    assert np.abs(counted.active - tap.active).sum() <= 1e-5 * tap.active.sum()
    assert np.abs(counted.named - tap.named).sum() <= 1e-4 * tap.named.sum()
    assert counted.domains == ("prose.txt", "code.jsonl")
    by_domain = [sum(len(w.ids) for w in windows if w.domain == d) for d in (0, 1)]
    assert [sum(pair) for pair in counted.part_tokens] == by_domain
    for one, other in counted.part_tokens:
        assert 0.3 < one / (one + other) < 0.7
    first = ModelDirectory.open(model).layer(0).neuron_ids
    assert np.array_equal(first, counted.hottest_first(0))
    assert report.ranks == [4, 4, 4]
    assert len(report.skew.domains) == 2
    assert not list(model.rglob(".*"))


def test_rounds_of_any_size_count_the_same(model, texts, tmp_path, monkeypatch):
    found = []
    for tokens in (16, 300, 10**6):
        monkeypatch.setattr(profile_estimate, "ROUND_TOKENS", tokens)
        copy = shutil.copytree(model, tmp_path / f"copy-{tokens}")
        report = profile(copy, texts, PLAIN)
        found.append((report.estimate.rounds, read_profile(copy / "profiles" / "default.safetensors")))
    assert found[0][0] > found[1][0] > found[2][0] == 1
    for _, other in found[1:]:
        assert all(np.array_equal(getattr(found[0][1], name), getattr(other, name)) for name in (*COUNTS, "parts"))


def test_given_predictors_name_and_shards_add_up(model, texts):
    from hybrid.stages.profile_merge import merge

    profile(model, texts[:1], ProfileSettings(rank=4, steps=60, name="one"))
    profile(model, texts[1:], ProfileSettings(name="two", predictors="one"))
    one, two = (read_profile(model / "profiles" / f"{name}.safetensors") for name in ("one", "two"))
    assert two.has_predictors
    assert one.predictors_digest == two.predictors_digest
    assert two.named.any()
    report = merge(model, ["one", str(model / "profiles" / "two.safetensors")], "both")
    both = read_profile(model / "profiles" / "both.safetensors")
    assert report.tokens == both.tokens == one.tokens + two.tokens
    assert all(np.array_equal(getattr(both, n), getattr(one, n) + getattr(two, n)) for n in COUNTS)
    assert (model / "predictors" / "both.safetensors").read_bytes() == (
        model / "predictors" / "one.safetensors"
    ).read_bytes()
    assert np.array_equal(ModelDirectory.open(model).layer(1).neuron_ids, both.hottest_first(1))
    profile(model, texts[1:], ProfileSettings(name="own", rank=4))
    with pytest.raises(UserError, match="different predictors"):
        merge(model, ["one", "own"], "wrong")
    with pytest.raises(UserError, match="named twice"):
        merge(model, ["one", "one"], "wrong")
    (model / "predictors" / "one.safetensors").unlink()
    (model / "predictors" / "two.safetensors").unlink()
    with pytest.raises(UserError, match="copy them there"):
        merge(model, ["one", "two"], "wrong")


def test_a_profile_without_predictors_drops_those_of_its_name(model, texts):
    profile(model, texts[:1], ProfileSettings(rank=4, steps=60))
    report = profile(model, texts[:1], PLAIN)
    assert (report.ranks, report.predictor_bytes, report.layers[0].quality) == ([], 0, None)
    assert not (model / "predictors" / "default.safetensors").exists()


def test_a_model_without_zeros_is_told_of_and_trains_nothing(make_llama, tmp_path, texts):
    path = pack(make_llama(tmp_path, hidden_act="silu"), tmp_path / "silu").destination
    notes = []
    report = profile(path, texts[:1], ProfileSettings(), note=notes.append)
    assert any("never exactly zero" in line for line in notes)
    assert report.ranks == []
    assert [layer.active for layer in report.layers] == [1.0] * 3


def test_layers_in_which_nothing_or_everything_fires_work(make_opt, tmp_path, texts):
    checkpoint = make_opt(tmp_path)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.0.fc1.bias"].fill_(-1000)
    tensors["model.decoder.layers.2.fc1.bias"].fill_(1000)
    save_file(tensors, file, {"format": "pt"})
    path = pack(checkpoint, tmp_path / "packed").destination
    report = profile(path, texts[:1], ProfileSettings(rank=4, steps=60))
    assert (report.layers[0].active, report.layers[0].hot_share) == (0, 0)
    assert report.layers[2].active == 1
    assert report.layers[0].quality.named == 0
    assert report.layers[2].quality.named == 1
    assert report.skew.layers[0].held_out[0] is None
    assert report.skew.layers[2].held_out[-1] == pytest.approx(0.5, abs=0.01)


def test_values_that_are_no_numbers_name_the_layer(make_llama, tmp_path, texts):
    checkpoint = make_llama(tmp_path)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    for part in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{part}.weight"].fill_(1e30)
    save_file(tensors, file, {"format": "pt"})
    path = pack(checkpoint, tmp_path / "packed").destination
    with pytest.raises(UserError, match="layer 1 computed values that are not finite"):
        profile(path, texts[:1], PLAIN)


def test_what_cannot_be_profiled_says_what_to_do(model, texts, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the brown fox runs")
    with pytest.raises(UserError, match=r"at least 512 tokens.*train none"):
        profile(model, [short], ProfileSettings())
    assert profile(model, [short], PLAIN).tokens < 64
    with pytest.raises(UserError, match=r"allow at least .* with --memory"):
        profile(model, texts, ProfileSettings(memory=1 << 20))
    many = []
    for i in range(17):
        many.append(tmp_path / f"{i}.txt")
        many[-1].write_text("the fox")
    with pytest.raises(UserError, match="at most 16 apart; put those of one kind into a folder"):
        profile(model, many, PLAIN)
    with pytest.raises(UserError, match="no predictors at"):
        profile(model, texts, ProfileSettings(predictors="none-such"))
    assert not list(model.rglob(".*"))
