"""Planted weights fire as they should, and planted predictors and profiles say so; transformers computes the states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic.checkpoint import write_checkpoint
from synthetic.planted import planted_predictor, planted_predictors, planted_profile
from synthetic.shape import Shape
from synthetic.weights import PlantedWeights
from transformers import AutoModelForCausalLM

from profiler.skew import hot_share

SIZES = {"hidden": 256, "layers": 2, "ffn": 1024, "heads": 8, "rank": 63}
TOKENS = 400


FAMILIES = {"llama": {}, "mistral": {}, "opt": {"kv_heads": 8}, "arcee": {"activation": "relu2"}}
FIRST = {"opt": "fc1", "arcee": "mlp.up_proj"}  # the module that decides on firing, where it is not a gate


@pytest.fixture(scope="module", params=list(FAMILIES))
def planted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PlantedWeights, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Weights, and per layer the states that its FFN read and what decided on firing, by transformers."""
    sizes = {**SIZES, "kv_heads": 4, **FAMILIES[request.param]}
    weights = PlantedWeights(Shape(family=request.param, overshoot=1.5, **sizes))
    folder = tmp_path_factory.mktemp("planted") / "checkpoint"
    write_checkpoint(folder, weights)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = model.model.decoder.layers if request.param == "opt" else model.model.layers
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in layers:
        layer.get_submodule(FIRST.get(request.param, "mlp.gate_proj")).register_forward_hook(
            lambda module, read, made: seen.append((read[0].flatten(0, -2), made.flatten(0, -2)))
        )
    ids = torch.randint(3, 4096, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model(ids)
    return weights, seen


def test_neurons_fire_as_often_as_planted(
    planted: tuple[PlantedWeights, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    weights, seen = planted
    for layer, (_, made) in enumerate(seen):
        fired = (made > 0).double().mean(0)
        assert float(fired.mean()) == pytest.approx(0.1, rel=0.06)
        # Counts of 400 draws scatter by sqrt(p (1 - p) / 400), at most 0.025 and 0.012 on average; what attention
        # adds is alike for tokens of one text and makes that 0.016 to 0.02.
        assert float((fired - weights.firing(layer)).abs().max()) < 0.15
        assert float((fired - weights.firing(layer)).square().mean().sqrt()) < 0.024


def test_the_planted_predictor_gives_the_gates_themselves(
    planted: tuple[PlantedWeights, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    weights, seen = planted
    for layer, (read, made) in enumerate(seen):
        predictor = planted_predictor(weights, layer)
        assert predictor.rank == 128
        assert float((predictor.logits(read) - made).abs().max()) < 0.03
        for named in (predictor.named(read), predictor.quantised().named(read)):
            fired = made > 0
            assert int((fired & ~named).sum()) <= 1e-4 * int(fired.sum())
            assert float(named.sum() / fired.sum()) == pytest.approx(1.5, rel=0.06)


def test_profile_and_quality_speak_of_the_same_probabilities() -> None:
    weights = PlantedWeights(Shape(kv_heads=4, overshoot=1.5, **SIZES))
    profile = planted_profile(weights, "0" * 64)
    assert profile.has_predictors and profile.layers == 2
    assert profile.frequency().mean() == pytest.approx(0.1, rel=1e-3)
    assert profile.frequency("named").mean() == pytest.approx(0.15, rel=1e-3)
    for fewer, more in (("active", "named"), ("active", "union4"), ("union4", "union16")):
        assert (getattr(profile, fewer) <= getattr(profile, more)).all()
    assert hot_share(profile, 0) == pytest.approx(0.26, abs=0.005)
    assert not np.array_equal(profile.active[0], profile.active[1])
    quality = planted_predictors(weights, "0" * 64, quantised=True).quality[1]
    assert (quality.recall, quality.active) == (1.0, pytest.approx(0.1))
    assert quality.precision == pytest.approx(1 / 1.5)


def test_the_text_of_a_synthetic_model_does_not_stand_still(tmp_path: Path) -> None:
    """A text that repeats one token would read the same rows from the cache, and speeds would mean nothing."""
    weights = PlantedWeights(Shape(kv_heads=4, **SIZES))
    write_checkpoint(tmp_path / "checkpoint", weights)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    prompt = torch.tensor([[1, 300, 301]])
    text = model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert len(set(text[0].tolist())) > 15
