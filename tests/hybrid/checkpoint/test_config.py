"""config.json to ModelSpec: what transformers writes is understood, what is not supported is refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.checkpoint.config import read_config
from hybrid.spec import Llama3Scaling, ModelSpec
from profiler.artifacts import UserError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "intermediate_size": 14336, "num_key_value_heads": 8}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
}
ARCEE = {**LLAMA, "architectures": ["ArceeForCausalLM"], "intermediate_size": 18432, "num_key_value_heads": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def spec_of(config):
    return read_config(config)[1]


def test_llama_2_with_defaults_of_transformers():
    assert spec_of(LLAMA) == ModelSpec(
        family="llama",
        vocab_size=32000,
        hidden_size=4096,
        n_layers=32,
        n_neurons=11008,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        max_positions=4096,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=1e-6,
        positions="rope",
    )


def test_llama_options_are_read():
    config = {
        **LLAMA,
        "hidden_act": "relu",
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_theta": 500000,
    }
    spec = spec_of(config)
    assert (spec.activation, spec.n_kv_heads, spec.head_dim) == ("relu", 8, 64)
    assert (spec.norm_eps, spec.attention_bias, spec.tied_embeddings) == (1e-5, True, True)
    assert spec.rope_theta == 500000.0


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
    ids=["rope_scaling", "both type keys", "rope_parameters"],
)
def test_llama_3_rotary_scaling_in_old_and_new_keys(keys):
    spec = spec_of({**LLAMA, **keys})
    assert spec.rope_theta == 500000.0
    assert spec.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_the_old_name_of_the_scaling_type():
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_type"} | {"type": "llama3"}
    assert spec_of({**LLAMA, "rope_scaling": scaling}).rope_scaling is not None


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_other_rotary_scalings_are_refused_by_name(kind, key):
    with pytest.raises(UserError, match=f"'{kind}'.*llama3"):
        spec_of({**LLAMA, key: {"rope_type": kind, "factor": 2.0}})


def test_mistral_window_may_be_a_number_or_null_and_has_a_default():
    assert spec_of({**MISTRAL, "sliding_window": 1024}).sliding_window == 1024
    assert spec_of({**MISTRAL, "sliding_window": None}).sliding_window is None
    assert spec_of(MISTRAL).sliding_window == 4096


def test_llama_has_no_window():
    assert spec_of({**LLAMA, "sliding_window": 1024}).sliding_window is None


def test_opt():
    spec = spec_of(OPT)
    assert (spec.family, spec.activation, spec.gated, spec.norm, spec.norm_eps) == ("opt", "relu", False, "layer", 1e-5)
    assert (spec.positions, spec.position_offset, spec.n_neurons, spec.head_dim) == ("learned", 2, 3072, 64)
    assert spec.attention_bias and spec.ffn_bias and spec.tied_embeddings
    assert not spec_of({**OPT, "enable_bias": False}).ffn_bias


def test_arcee_is_a_llama_without_a_gate_whose_activation_is_squared():
    spec = spec_of(ARCEE)
    assert (spec.family, spec.activation, spec.gated, spec.norm, spec.norm_eps) == (
        "arcee",
        "relu2",
        False,
        "rms",
        1e-5,
    )
    assert (spec.positions, spec.n_neurons, spec.n_kv_heads, spec.head_dim) == ("rope", 18432, 8, 128)
    assert not (spec.attention_bias or spec.ffn_bias or spec.tied_embeddings)
    assert spec.has_exact_zeros
    biases = spec_of({**ARCEE, "mlp_bias": True, "attention_bias": True})
    assert biases.ffn_bias and biases.attention_bias
    assert spec_of({**ARCEE, "rope_scaling": LLAMA3}).rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert spec_of({**ARCEE, "head_dim": 64, "num_key_value_heads": None}).q_size == 32 * 64


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim 512"),
        ({**OPT, "layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ({**OPT, "_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ({**OPT, "activation_function": "tanh"}, "'tanh' is not supported; supported are relu, relu2, silu, gelu"),
        ({**LLAMA, "hidden_act": "fatrelu"}, "'fatrelu' is not supported; supported are relu, relu2, silu, gelu"),
        ({**LLAMA, "hidden_act": ["relu"]}, "hidden_act"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias"),
        ({**ARCEE, "hidden_act": "gelu_fast"}, "'gelu_fast' is not supported"),
        ({**ARCEE, "mlp_bias": 1}, "mlp_bias"),
        ({**ARCEE, "rope_scaling": {"rope_type": "yarn", "factor": 20.0}}, "'yarn'.*llama3"),
        ({**MISTRAL, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ between layers"),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "already quantised; pack the 16-bit original"),
        ({**LLAMA, "architectures": ["BambaForCausalLM"]}, "BambaForCausalLM.*LlamaForCausalLM, MistralForCausalLM"),
        ({**LLAMA, "architectures": None}, "supported are"),
        ({**LLAMA, "architectures": [{}]}, "supported are"),
        ({**LLAMA, "hidden_size": 100, "num_attention_heads": 7}, "does not divide into 7 heads"),
        ({**LLAMA, "num_attention_heads": 0}, "0 heads"),
        ({**LLAMA, "num_key_value_heads": 0}, "n_kv_heads"),
        ({**LLAMA, "head_dim": 0}, "head_dim"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "n_layers"),
        ({**LLAMA, "vocab_size": -1}, "vocab_size"),
        ({**LLAMA, "vocab_size": 10**5000}, "vocab_size"),
        ({**LLAMA, "hidden_size": "4096"}, "hidden_size is '4096'; a whole number"),
        ({**LLAMA, "hidden_size": 4096.0}, "hidden_size"),
        ({**LLAMA, "hidden_size": True}, "hidden_size"),
        ({**LLAMA, "tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({**LLAMA, "rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({**LLAMA, "rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({**LLAMA, "rope_theta": float("nan")}, "rope theta"),
        ({**LLAMA, "rope_scaling": [1]}, "rope_scaling"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3"}}, "lacks factor"),
        ({**LLAMA, "rope_scaling": {**LLAMA3, "factor": "8"}}, "factor"),
        ({**MISTRAL, "sliding_window": 0}, "sliding window"),
        ({**MISTRAL, "sliding_window": "4096"}, "sliding_window"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        spec_of(change)


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, OPT, ARCEE], ids=["llama", "mistral", "opt", "arcee"])
def test_a_missing_key_is_named(config):
    for key in set(config) - {"architectures", "num_key_value_heads"}:
        with pytest.raises(UserError, match=f"no {key}"):
            spec_of({k: v for k, v in config.items() if k != key})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {*LLAMA, *MISTRAL, *OPT, "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "hidden_act", "rms_norm_eps"}
    | {"sliding_window", "tie_word_embeddings", "attention_bias", "mlp_bias", "word_embed_proj_dim", "enable_bias"}
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([LLAMA, MISTRAL, OPT, ARCEE]), st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=2)
)
def test_any_value_gives_a_spec_or_a_user_error(config, change):
    try:
        spec = spec_of({**config, **change})
    except UserError:
        return
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_configs_that_transformers_writes(make_llama, make_mistral, make_opt, make_arcee, llama3_rope, tmp_path):
    def read(path):
        return spec_of(json.loads((path / "config.json").read_text()))

    llama = read(make_llama(tmp_path, rope_parameters=llama3_rope))
    assert (llama.n_heads, llama.n_kv_heads, llama.head_dim, llama.activation) == (6, 2, 10, "relu")
    assert llama.rope_theta == llama3_rope["rope_theta"]
    assert llama.rope_scaling is not None and llama.rope_scaling.original_positions == 32
    assert read(make_mistral(tmp_path)).sliding_window == 24
    assert read(make_opt(tmp_path)).tied_embeddings
    arcee = read(make_arcee(tmp_path))
    assert (arcee.activation, arcee.gated, arcee.n_kv_heads, arcee.head_dim) == ("relu2", False, 2, 10)
