"""The planted probabilities: their mean, their skew, and what no power law can do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic.firing import LARGEST, carried, firing_probabilities, solve
from synthetic.shape import PRESETS, Shape
from synthetic.weights import PlantedWeights

from profiler.artifacts import UserError


@settings(deadline=None, max_examples=20)
@given(st.integers(300, 4000), st.floats(0.02, 0.2), st.floats(0.24, 0.5))
def test_probabilities_have_the_mean_and_the_skew_asked_for(neurons: int, active: float, hot: float) -> None:
    probabilities = firing_probabilities(neurons, active, hot)
    assert probabilities.shape == (neurons,)
    assert float(probabilities.mean()) == pytest.approx(active, rel=1e-6)
    assert carried(probabilities, hot) == pytest.approx(0.8, abs=0.01)
    assert bool((probabilities.diff() <= 0).all())
    assert float(probabilities.min()) > 0 and float(probabilities.max()) <= LARGEST


def test_a_quarter_of_the_neurons_cannot_carry_what_they_have_no_room_for() -> None:
    with pytest.raises(UserError, match="--hot-share"):
        firing_probabilities(1000, active_share=0.6, hot_share=0.26)


def test_solve_finds_where_a_rising_function_takes_a_value() -> None:
    assert solve(lambda x: x**3, 8.0, 1e-3, 1e3) == pytest.approx(2.0)


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
