"""The shapes that can be planted, and how often their neurons fire."""

from __future__ import annotations

import pytest
import torch
from synthetic.firing import firing_probabilities
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

from profiler.artifacts import UserError


def test_probabilities_have_the_mean_asked_for() -> None:
    probabilities = firing_probabilities(1000, active_share=0.1, hot_share=0.3)
    assert (probabilities.shape, probabilities.dtype) == ((1000,), torch.float64)
    assert float(probabilities.mean()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("llama-1b", 1.26),
        ("llama-3b", 3.43),
        ("llama-7b", 6.74),
        ("llama-13b", 13.0),
        ("mistral-7b", 7.24),
        ("afm-4.5b", 4.62),
    ],
)
def test_presets_have_the_size_of_their_name(preset: str, billions: float) -> None:
    names = PlantedWeights(Shape(**PRESETS[preset])).names
    assert sum(torch.Size(shape).numel() for shape in names.values()) / 1e9 == pytest.approx(billions, rel=0.02)


def test_opt_is_ungated_with_biases_and_learned_positions() -> None:
    spec = Shape(**PRESETS["opt-6.7b"]).spec
    assert (spec.gated, spec.ffn_bias, spec.positions, spec.tied_embeddings) == (False, True, "learned", True)
    parameters = sum(torch.Size(shape).numel() for shape in PlantedWeights(Shape(**PRESETS["opt-6.7b"])).names.values())
    assert parameters / 1e9 == pytest.approx(6.66, rel=0.01)


def test_afm_is_ungated_and_otherwise_a_llama_with_squared_activations() -> None:
    spec = Shape(**PRESETS["afm-4.5b"]).spec
    assert (spec.family, spec.activation, spec.gated, spec.ffn_bias) == ("arcee", "relu2", False, False)
    assert (spec.head_dim, spec.n_kv_heads, spec.norm, spec.positions) == (128, 4, "rms", "rope")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rank": 1024}, "rank"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"overshoot": 20.0}, "predictor"),
        ({"overshoot": 0.5}, "predictor"),
        ({"family": "gpt"}, "family"),
        ({"heads": 3}, "heads"),
        ({"family": "opt", "kv_heads": 16, "activation": "silu"}, "relu"),
        ({"family": "arcee"}, "--activation relu2"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Shape(**change)
