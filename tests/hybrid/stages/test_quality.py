"""Quality figures against transformers, run over the same windows with the same neurons named, on a tiny model."""

import math
from array import array

import numpy as np
import pytest
import torch
import transformers

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.stages.opening import open_engine
from hybrid.stages.quality import Part, Passage, evaluate, measure, measure_layers, parts_of, spread
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.matrix import Matrix
from profiler.predictor import Predictor, PredictorSet
from profiler.predictor_outline import PredictorQuality

TEXTS = [f"The {a} fox runs over the {b} dog: {i}" * 9 for i, (a, b) in enumerate([("hot", "cold")] * 3 + [("a", "b")])]
SHARES = PredictorQuality(1, 0.5, 0.5, 0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def predictors(llama_directory):
    """Random predictors, which name about a third of the neurons."""
    generator = torch.Generator().manual_seed(0)
    with ModelDirectory.open(llama_directory) as directory:
        spec, source = directory.spec, directory.source_digest
    layers = [
        Predictor.low_rank(
            Matrix.of(torch.randn(16, spec.hidden_size, generator=generator).half()),
            Matrix.of(torch.randn(spec.n_neurons, 16, generator=generator).half()),
            threshold=5.0,
        )
        for _ in range(spec.n_layers)
    ]
    return PredictorSet(source, tuple(layers), (SHARES,) * spec.n_layers)


class Oracle:
    """transformers' model, whose FFNs add up only what predictors name; keeps activations and names of every layer."""

    def __init__(self, checkpoint, predictors):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.seen = [[] for _ in self.model.model.layers]
        for index, layer in enumerate(self.model.model.layers):
            named = None if predictors is None else predictors.layers[index].named
            layer.mlp.forward = self.masked(layer.mlp, named, self.seen[index])

    def masked(self, mlp, named, seen):
        def forward(x):
            values = torch.relu(mlp.gate_proj(x)) * mlp.up_proj(x)
            chosen = torch.ones_like(values, dtype=torch.bool) if named is None else named(x[0])[None]
            seen.append((values[0], chosen[0]))
            return mlp.down_proj(values * chosen)

        return forward

    @torch.inference_mode()
    def log_probabilities(self, ids):
        return self.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


@pytest.fixture
def engines(llama_directory, predictors):
    options = EngineOptions(mode="predicted", predictors=predictors, kv_format="f32")
    with (
        open_engine(llama_directory, mode="dense", kv_format="f32") as dense,
        Engine(ModelDirectory.open(llama_directory), options) as predicted,
    ):
        yield dense, predicted


def test_the_figures_are_those_of_transformers(llama_checkpoint, predictors, engines, passages_of):
    dense, predicted = Oracle(llama_checkpoint, None), Oracle(llama_checkpoint, predictors)
    passages = passages_of(engines[0], TEXTS, 100)
    losses, gaps, agreeing = [], [], 0
    for passage in passages:
        expected, found = dense.log_probabilities(passage.ids), predicted.log_probabilities(passage.ids)
        targets = torch.tensor(passage.ids[1:])[:, None]
        losses.append(torch.stack([-p[:-1].gather(1, targets).sum() for p in (expected, found)]))
        gaps.append((expected.exp() * (expected - found)).sum(-1)[:-1])
        agreeing += int((expected.argmax(-1) == found.argmax(-1))[:-1].sum())
    tokens, kl = sum(passage.predicted for passage in passages), torch.cat(gaps).numpy()
    perplexities = (torch.stack(losses).sum(0) / tokens).exp().tolist()
    reference, quality = evaluate(engines, passages)
    assert reference.perplexity == pytest.approx(perplexities[0], rel=1e-4)
    assert quality.perplexity == pytest.approx(perplexities[1], rel=1e-3)
    assert quality.ratio == pytest.approx(perplexities[1] / perplexities[0], rel=1e-3)
    assert kl.mean() > 0.01, "the predictors are bad ones, or this shows nothing"
    assert quality.divergence == pytest.approx(kl.mean(), rel=1e-2)
    measured = [quality.divergence_p50, quality.divergence_p95, quality.divergence_p99]
    np.testing.assert_allclose(measured, np.percentile(kl, [50, 95, 99]), rtol=2e-2)
    assert quality.agreement == pytest.approx(agreeing / tokens, abs=0.01)
    assert (reference.ratio, reference.divergence, reference.agreement) == (1, 0, 1)
    one = measure(engines, passages)[1]
    np.testing.assert_allclose(one.losses, torch.stack(losses)[:, 1], rtol=1e-3)


def test_layers_are_measured_on_the_states_of_the_mode(llama_checkpoint, predictors, engines, passages_of):
    oracle, passages = Oracle(llama_checkpoint, predictors), passages_of(engines[0], TEXTS, 100)
    for passage in passages:
        oracle.log_probabilities(passage.ids)
    found = measure_layers(engines[1], passages, lambda done, total: None)
    for layer, seen in zip(found, oracle.seen, strict=True):
        mass, named = torch.cat([a for a, _ in seen]).abs(), torch.cat([n for _, n in seen])
        active = mass > 0
        both = (active & named).sum().item()
        assert layer.tokens == len(mass)
        assert layer.active == pytest.approx(active.float().mean().item(), abs=2e-3)
        assert layer.named == pytest.approx(named.float().mean().item(), abs=2e-3)
        assert layer.recall == pytest.approx(both / active.sum().item(), abs=2e-3)
        assert layer.precision == pytest.approx(both / named.sum().item(), abs=2e-3)
        assert layer.mass_recall == pytest.approx(((mass * named).sum(1) / mass.sum(1)).mean().item(), abs=2e-3)
        assert layer.dropped_mass == pytest.approx((mass * ~named).sum().item() / mass.sum().item(), abs=2e-3)
        assert 0.1 < layer.mass_recall < 0.9, "the predictors are bad ones, or this shows nothing"


def test_exact_mode_names_what_is_active(llama_directory, passages_of):
    with open_engine(llama_directory, mode="exact") as exact:
        for layer in measure_layers(exact, passages_of(exact, TEXTS, 100), lambda done, total: None):
            assert layer.named == layer.active < 1
            assert (layer.recall, layer.precision, layer.mass_recall, layer.dropped_mass) == (1, 1, 1, 0)


def test_a_tap_changes_no_state(engines):
    class Watching:
        def document(self):
            pass

        def ffn(self, layer, hidden, activation, named):
            pass

    ids = engines[0].tokenizer.encode(TEXTS[0])[:90]
    for engine in engines:
        gaps = (engine.logits(ids) - engine.logits(ids, tap=Watching())).abs().amax(1)
        assert (gaps > 1e-3).float().mean() <= 0.02  # a logit at its threshold may fall to either side


def passage(document, tokens=11):
    return Passage(array("i", range(tokens)), document)


def test_long_documents_are_cut_between_windows_and_short_ones_are_not():
    passages = [passage(0)] * 40 + [passage(1)] * 2 + [passage(2), passage(2, 3)] + [passage(3, 2)]
    parts = parts_of(passages)
    assert parts[0] == Part(0, 2, 0)
    assert [part.stop for part in parts] == [part.first for part in parts[1:]] + [len(passages)]
    tokens = sum(p.predicted for p in passages)
    assert all(sum(p.predicted for p in passages[part.first : part.stop]) <= tokens / 20 + 10 for part in parts)
    assert parts[-3:] == [Part(40, 42, 1), Part(42, 44, 2), Part(44, 45, 3)]
    assert all(p.document == part.document for part in parts for p in passages[part.first : part.stop])


def test_a_sample_is_spread_over_the_text():
    passages = [passage(i) for i in range(100)]
    assert [p.document for p in spread(passages, 44)] == [12, 37, 62, 87]
    assert spread(passages, 10**9) == passages
    assert len(spread(passages, 1)) == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_output_that_is_no_number_is_refused(llama_directory, wrong):
    """Also of a token that is never looked for, with a reference and without."""
    with open_engine(llama_directory, mode="dense") as dense, open_engine(llama_directory, mode="exact") as exact:
        logits = torch.zeros(389)
        logits[300] = wrong
        dense.head = lambda hidden: logits.repeat(len(hidden), 1)
        for engines in ([dense], [dense, exact], [exact, dense]):
            with pytest.raises(UserError, match="not finite"):
                measure(engines, [passage(0)])


def test_alone_an_engine_has_the_losses_that_it_has_beside_others(engines, passages_of):
    passages = passages_of(engines[0], TEXTS, 100)
    (alone,), beside = measure(engines[:1], passages), measure(engines, passages)[0]
    for found in (alone, beside):
        np.testing.assert_array_equal(found.losses, alone.losses)
        assert found.agreeing.tolist() == [p.predicted for p in passages]
        assert not found.divergences.any() and not found.divergence_of.any()
