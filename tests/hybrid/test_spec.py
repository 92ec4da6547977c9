"""A spec is what it says, or an error: it may come from a file of somebody else."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.spec import ModelSpec
from profiler.artifacts import UserError

GOOD = {
    "family": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "n_layers": 2,
    "n_neurons": 24,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 4,
    "max_positions": 64,
    "activation": "relu",
    "gated": True,
    "norm": "rms",
    "norm_eps": 1e-5,
    "positions": "rope",
}
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers()))


def test_json_round_trip():
    spec = ModelSpec.from_json(GOOD)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", 1 << 40),
        ("n_layers", True),
        ("n_heads", 3),
        ("head_dim", 5),
        ("activation", "tanh"),
        ("rotary_dims", 3),
        ("rotary_dims", 6),
        ("rotary_dims", True),
        ("shared_norm", True),
        ("qk_norm", 1),
        ("parallel", None),
        ("gated", 1),
        ("norm", "batch"),
        ("positions", "sinus"),
        ("norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("position_offset", 1000),
        ("sliding_window", 0),
        ("activation_cutoff", -0.01),
        ("activation_cutoff", float("nan")),
        ("activation_cutoff", True),
        ("unknown", 1),
    ],
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(UserError):
        ModelSpec.from_json({**GOOD, key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "drelu", "gated": False}, "no gate"),
        ({"attention_bias": True, "qkv_bias": True}, "twice"),
        ({"positions": "learned", "rotary_dims": 2}, "rotate"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ModelSpec.from_json({**GOOD, **changes})


def test_the_specs_of_older_directories_mean_what_they_did():
    spec = ModelSpec.from_json({**GOOD, "attention_bias": True})
    assert spec.biased_projections == ("q", "k", "v", "o")
    assert (spec.rotary_size, spec.qk_norm, spec.parallel, spec.shared_norm) == (4, False, False, False)


@settings(deadline=None, max_examples=200)
@given(
    key=st.sampled_from(
        [*GOOD, "rope_theta", "rope_scaling", "position_offset", "sliding_window", "activation_cutoff", "rotary_dims"]
    ),
    value=VALUES,
)
def test_any_value_gives_a_spec_or_a_user_error(key, value):
    with contextlib.suppress(UserError):
        ModelSpec.from_json({**GOOD, key: value})
