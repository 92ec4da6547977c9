"""The papers' models as shapes: their sizes are those of their names, and bytes agree with the weights."""

import numpy as np
import pytest

from placement.shapes import ModelShape, read_shape, shipped_shapes
from profiler.artifacts import UserError
from profiler.formats import bits_per_weight

BILLIONS = {
    "opt-6.7b": 6.66,
    "opt-13b": 12.85,
    "opt-30b": 29.97,
    "falcon-40b": 41.3,
    "relullama-7b": 6.74,
    "relullama-13b": 13.0,
    "relullama-70b": 69.0,
    "bamboo-7b": 7.24,
}


def small(**changes: object) -> ModelShape:
    figures: dict[str, object] = {
        "layers": 2,
        "hidden": 64,
        "ffn": 256,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab": 100,
        "gated": True,
        "tied": False,
        "active": 0.1,
        "hot_share": 0.3,
        "predictor_share": 0.05,
    }
    return ModelShape(name="small", **{**figures, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", shipped_shapes())
def test_shapes_have_the_size_of_their_name(name: str) -> None:
    assert read_shape(name).weights / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


@pytest.mark.parametrize("name", shipped_shapes())
def test_profiles_have_the_published_mean(name: str) -> None:
    shape = read_shape(name)
    frequencies = shape.frequencies(neurons_per_row=64)
    assert frequencies.active.shape == (shape.layers, shape.ffn // 64)
    assert float(frequencies.active.mean()) == pytest.approx(shape.active, rel=1e-6)
    assert bool((np.diff(frequencies.active) <= 0).all())


@pytest.mark.parametrize("weight_format", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("gated", [True, False])
def test_bytes_are_the_weights_in_their_format(weight_format: str, gated: bool) -> None:
    shape = small(gated=gated)
    sizes = shape.sizes(weight_format)
    norms = 4 * 64 * (2 * 2 + 1)
    in_all = sum(sizes.attention_bytes) + sizes.n_layers * sizes.n_rows * sizes.row_bytes + sizes.final_norm_bytes
    in_all += sizes.embeddings_bytes + sizes.head_bytes
    assert in_all == shape.weights * bits_per_weight(weight_format) / 8 + norms
    predictors = shape.predictor_share * shape.weights * bits_per_weight(weight_format) / 8
    assert sum(sizes.predictor_bytes) == pytest.approx(predictors, rel=0.01)
    assert sizes.kv_bytes_per_token == 2 * 2 * 16 * 2


def test_a_layer_by_hand() -> None:
    sizes = small().sizes("f16")
    assert sizes.attention_bytes[0] == 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64) + 2 * 4 * 64
    assert sizes.row_bytes == 3 * 64 * 2
    assert small(gated=False).sizes("f16").row_bytes == 2 * 64 * 2
    assert small(tied=True).sizes("f16").tied


def test_coarser_rows_hold_the_same_bytes() -> None:
    fine, coarse = small().sizes("f16"), small().sizes("f16", neurons_per_row=64)
    assert (coarse.n_rows, coarse.row_bytes) == (4, 64 * fine.row_bytes)
    assert small().sizes("f16", predictors=False).predictor_bytes == (0, 0)
    with pytest.raises(UserError, match="whole number"):
        small().sizes("f16", neurons_per_row=60)


def test_unknown_shapes_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="falcon-40b"):
        read_shape("gpt-5")
