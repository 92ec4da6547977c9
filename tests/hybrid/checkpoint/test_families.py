"""The families beyond Llama, Mistral, OPT and Arcee: what their config.json means, and their tensors by our names."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.falcon.modeling_falcon import FalconAttention, FalconConfig

from hybrid.checkpoint.config import read_config
from hybrid.checkpoint.reader import Checkpoint
from profiler.artifacts import UserError

SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
BAMBOO = {**SIZES, "architectures": ["BambooForCausalLM"], "hidden_act": "relu"}
PROSPARSE = {
    **SIZES,
    "architectures": ["SparseLlamaForCausalLM"],
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.01,
}
QWEN2 = {**SIZES, "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**SIZES, "architectures": ["Qwen3ForCausalLM"]}
NEMOTRON = {**SIZES, "architectures": ["NemotronForCausalLM"]}
# As published with 40B and 7B, which leave out what transformers assumes.
FALCON_40B = {
    "architectures": ["FalconForCausalLM"],
    "alibi": False,
    "bias": False,
    "hidden_size": 8192,
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "new_decoder_architecture": True,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
    "parallel_attn": True,
    "vocab_size": 65024,
}
FALCON_7B = {
    **FALCON_40B,
    "hidden_size": 4544,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "num_kv_heads": 71,
}

# As published with Pythia-70M; GPT-NeoX-20B says gelu_fast.
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def spec_of(config, **changes):
    return read_config({**config, **changes})[1]


def test_bamboo_s_relu_is_that_of_gate_and_up_projection():
    spec = spec_of(BAMBOO)
    assert (spec.family, spec.activation, spec.gated, spec.has_exact_zeros) == ("bamboo", "drelu", True, True)


def test_prosparse_s_threshold_is_part_of_the_model():
    spec = spec_of(PROSPARSE)
    assert (spec.family, spec.activation, spec.activation_cutoff, spec.gated) == ("prosparse", "relu", 0.01, True)


def test_qwen2_has_biases_that_its_config_does_not_mention():
    spec = spec_of(QWEN2)
    assert spec.biased_projections == ("q", "k", "v")
    assert (spec.activation, spec.norm, spec.norm_eps, spec.sliding_window) == ("silu", "rms", 1e-6, None)


def test_qwen3_has_a_head_size_of_its_own_and_norms_of_heads():
    spec = spec_of(QWEN3)
    assert (spec.head_dim, spec.qk_norm, spec.biased_projections) == (128, True, ())
    assert spec_of(QWEN3, head_dim=64, attention_bias=True).biased_projections == ("q", "k", "v", "o")


@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_windows_of_layers_that_are_all_alike(config):
    window = {"use_sliding_window": True, "sliding_window": 100}
    assert spec_of(config, **window, max_window_layers=0).sliding_window == 100
    assert spec_of(config, **window, max_window_layers=32).sliding_window is None
    assert spec_of(config, **window, layer_types=["sliding_attention"] * 32).sliding_window == 100
    assert spec_of(config, sliding_window=100, layer_types=["full_attention"] * 32).sliding_window is None
    assert spec_of(config, use_sliding_window=True, sliding_window=None).sliding_window is None


def test_nemotron_rotates_half_of_each_head():
    spec = spec_of(NEMOTRON)
    assert (spec.activation, spec.gated, spec.norm, spec.norm_eps) == ("relu2", False, "layer", 1e-5)
    assert (spec.rotary_dims, spec.rotary_size, spec.head_dim) == (64, 64, 128)
    assert spec_of(NEMOTRON, partial_rotary_factor=1.0).rotary_size == 128
    parameters = {"rope_theta": 5e5, "partial_rotary_factor": 0.25}
    assert spec_of(NEMOTRON, rope_parameters=parameters).rotary_size == 32


def test_falcon_s_layouts():
    large, small = spec_of(FALCON_40B, activation="relu"), spec_of(FALCON_7B)
    assert (large.n_neurons, large.n_kv_heads, large.head_dim, large.max_positions) == (32768, 8, 64, 2048)
    assert (large.parallel, large.shared_norm, large.activation, large.tied_embeddings) == (True, False, "relu", True)
    assert (small.n_neurons, small.n_kv_heads, small.head_dim, small.activation) == (18176, 1, 64, "gelu")
    assert (small.parallel, small.shared_norm, small.gated, small.norm) == (True, True, False, "layer")
    one_norm = spec_of(FALCON_40B, num_ln_in_parallel_attn=1)
    assert (one_norm.parallel, one_norm.shared_norm) == (True, True)
    classic = spec_of(
        FALCON_7B, multi_query=False, parallel_attn=False, bias=True, num_attention_heads=64, hidden_size=4096
    )
    assert (classic.parallel, classic.shared_norm, classic.n_kv_heads, classic.ffn_bias) == (False, False, 64, True)


def test_gpt_neox_rotates_a_quarter_of_each_head_and_has_biases_everywhere():
    spec = spec_of(PYTHIA, rotary_emb_base=20000)
    assert (spec.activation, spec.gated, spec.norm, spec.parallel, spec.shared_norm) == (
        "gelu",
        False,
        "layer",
        True,
        False,
    )
    assert (spec.rotary_dims, spec.rope_theta, spec.n_kv_heads, spec.head_dim) == (16, 20000, 8, 64)
    assert (spec.biased_projections, spec.ffn_bias) == (("q", "k", "v", "o"), True)
    large = spec_of(PYTHIA, hidden_act="gelu_fast", use_parallel_residual=False, rotary_pct=1.0)
    assert (large.activation, large.parallel, large.rotary_size) == ("gelu_tanh", False, 64)
    parameters = {"rope_theta": 5e5, "partial_rotary_factor": 0.5}  # as transformers 5 writes it
    assert spec_of(PYTHIA, rope_parameters=parameters).rotary_size == 32


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (BAMBOO, {"hidden_act": "silu"}, "'silu' is not supported; supported are relu$"),
        (PROSPARSE, {"hidden_act": "relu"}, "'relu' is not supported; supported are fatrelu$"),
        (PROSPARSE, {"hidden_act_param": -0.01}, "cutoff"),
        (PROSPARSE, {"hidden_act_param": "0.01"}, "hidden_act_param is '0.01'; a number"),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 28}, "sliding window to 4 of 32 layers"),
        (QWEN2, {"use_sliding_window": 1}, "use_sliding_window is 1"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 32}, "use_sliding_window is False"),
        (QWEN3, {"layer_types": ["full_attention"] * 31}, "layer_types"),
        (QWEN3, {"layer_types": ["linear_attention"] * 32}, "layer_types"),
        (QWEN2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (NEMOTRON, {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (NEMOTRON, {"partial_rotary_factor": 0.01}, "even head size"),
        (FALCON_7B, {"alibi": True}, "alibi is True"),
        (FALCON_40B, {"parallel_attn": False}, "parallel_attn False"),
        (FALCON_7B, {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn 2"),
        (FALCON_7B, {"multi_query": "yes"}, "multi_query 'yes'"),
        (FALCON_7B, {"activation": "swiglu"}, "'swiglu' is not supported"),
        (FALCON_7B, {"hidden_size": 4545}, "does not divide into 71 heads"),
        (FALCON_7B, {"architectures": ["RWForCausalLM"]}, "RWForCausalLM"),
        (PYTHIA, {"rotary_pct": 1.5}, "rotary_pct is 1.5|rotary_pct 1.5"),
        (PYTHIA, {"use_parallel_residual": "yes"}, "use_parallel_residual is 'yes'"),
        (PYTHIA, {"rotary_emb_base": None}, "rope_theta is None"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config, changes, named):
    with pytest.raises(UserError, match=named):
        spec_of(config, **changes)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=2)
)
KEYS = sorted(
    {
        *PROSPARSE,
        *FALCON_40B,
        *PYTHIA,
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "partial_rotary_factor",
    }
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([BAMBOO, PROSPARSE, QWEN2, QWEN3, NEMOTRON, FALCON_40B, FALCON_7B, PYTHIA]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
def test_any_value_gives_a_spec_or_a_user_error(config, changes):
    try:
        spec = spec_of(config, **changes)
    except UserError:
        return
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec


def opened(path):
    """Our tensors whole, and those of the file."""
    checkpoint = Checkpoint.open(path)
    whole = {n: torch.cat([b.clone() for b in checkpoint.blocks(n, 7)]) for n in checkpoint.tensors}
    return checkpoint, whole, load_file(path / "model.safetensors")


def test_nemotron_s_norms_are_one_plus_what_is_stored(make_family, tmp_path):
    _, ours, theirs = opened(make_family("nemotron", tmp_path))
    assert len(ours) == len(theirs)
    for mine, yours in (("layers.1.attn_norm", "model.layers.1.input_layernorm"), ("final_norm", "model.norm")):
        assert torch.equal(ours[f"{mine}.weight"], theirs[f"{yours}.weight"].float() + 1)
        assert torch.equal(ours[f"{mine}.bias"], theirs[f"{yours}.bias"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"new_decoder_architecture": False},
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 6},
    ],
    ids=["grouped", "one key head", "as many key heads"],
)
def test_falcon_s_fused_heads_are_split_as_transformers_splits_them(make_family, tmp_path, options):
    path = make_family("falcon", tmp_path, bias=True, **options)
    checkpoint, ours, theirs = opened(path)
    spec, config = checkpoint.spec, FalconConfig.from_pretrained(path)
    attention = FalconAttention(config, 0)
    name = "transformer.h.2.self_attention.query_key_value"
    stored = torch.cat([theirs[f"{name}.weight"], theirs[f"{name}.bias"][:, None]], 1)
    parts = attention._split_heads(stored.T[None].contiguous())  # each value of an output is a token's
    shared = spec.n_heads // spec.n_kv_heads if config.new_decoder_architecture else 1  # keys are repeated
    for part, step, expected in zip("qkv", (1, shared, shared), parts, strict=True):
        heads = expected[0, :, ::step].flatten(1).T
        assert torch.equal(ours[f"layers.2.{part}.weight"], heads[:, :-1])
        assert torch.equal(ours[f"layers.2.{part}.bias"], heads[:, -1])
    assert checkpoint.parameters == sum(t.numel() for t in theirs.values())


def test_gpt_neox_s_causal_mask_is_not_taken_for_weights(make_family, tmp_path):
    path = make_family("gpt_neox", tmp_path)
    _, ours, theirs = opened(path)
    masks = {f"gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8) for i in range(3)}
    masks |= {f"gpt_neox.layers.{i}.attention.masked_bias": torch.tensor(-1e9) for i in range(3)}
    save_file({**theirs, **masks}, path / "model.safetensors")
    _, again, _ = opened(path)
    assert set(again) == set(ours)
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


def test_fused_heads_do_not_depend_on_the_container_or_on_blocks(make_family, tmp_path):
    path = make_family("falcon", tmp_path)
    _, ours, theirs = opened(path)
    (path / "model.safetensors").unlink()
    torch.save(theirs, path / "pytorch_model.bin")
    checkpoint = Checkpoint.open(path)
    for name, tensor in ours.items():
        for rows in (1, 13, 1000):
            blocks = [block.clone() for block in checkpoint.blocks(name, rows)]
            assert all(len(block) == min(rows, len(tensor)) for block in blocks[:-1])
            assert torch.equal(torch.cat(blocks), tensor)


def test_fused_heads_of_another_shape_are_named(make_family, tmp_path):
    path = make_family("falcon", tmp_path)
    name = "transformer.h.1.self_attention.query_key_value.weight"
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, name: tensors[name][:-1].clone()}, path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} in model.safetensors has shape \[99, 60\].*implies \[100, 60\]"):
        Checkpoint.open(path)
    save_file({n: t for n, t in tensors.items() if n != name}, path / "model.safetensors")
    with pytest.raises(UserError, match=rf"lacks {name}"):
        Checkpoint.open(path)
