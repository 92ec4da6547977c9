"""The decoder against transformers, on random checkpoints of odd sizes: every family, every option that it honours.

The weights are bf16 in the file and widened exactly on both sides; pages are fp32 here, so 1e-4 is the bound. For
formats of blocks transformers is given the weights as these formats round them, and what is left is the rounding of
activations to 8 bits, which is theirs too: hundredths of the logits' scale for random weights.
"""

import functools
import json

import pytest
import torch
import transformers

from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from profiler.formats import is_quantised
from profiler.matrix import Matrix

TOKENS = 90
TOLERANCE = 1e-4
ROUNDED = 0.06  # what activations of 8 bits explain; 0.03 was measured
BY_NEURON = (
    "down_proj",
    "fc2",
    "dense_4h_to_h",
)  # stored as one vector of each neuron: the columns of the checkpoint's matrix


def reference_logits(source, ids, block_format=None):
    settings = json.loads((source / "config.json").read_text())
    published = PUBLISHED_FFNS.get(settings["architectures"][0])
    known = {} if published is None else {"config": without_activation(source)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager", **known
    ).eval()
    if published is not None:
        for layer in model.model.layers:
            layer.mlp.forward = functools.partial(published, layer.mlp, settings)
    with torch.inference_mode():
        if block_format:
            round_weights(model, block_format)
        return model(torch.tensor([ids])).logits[0].float()


def without_activation(source):
    """A config that transformers can build: its own FFN is replaced."""
    config = transformers.AutoConfig.from_pretrained(source)
    config.hidden_act = "relu"
    return config


def bamboo_ffn(mlp, settings, x):
    """`down(relu(gate x) * relu(up x))` (model card of PowerInfer/Bamboo-base)."""
    return mlp.down_proj(mlp.gate_proj(x).relu() * mlp.up_proj(x).relu())


def prosparse_ffn(mlp, settings, x):
    """`down(fatrelu(gate x) * up x)`, where fatrelu keeps what is above the threshold (ProSparse, section 3.3)."""
    gate = mlp.gate_proj(x)
    kept = torch.where(gate > settings["hidden_act_param"], gate, 0)
    return mlp.down_proj(kept * mlp.up_proj(x))


PUBLISHED_FFNS = {"BambooForCausalLM": bamboo_ffn, "SparseLlamaForCausalLM": prosparse_ffn}


def round_weights(model, block_format):
    """Give a model's matrices the values that a format of blocks keeps; learned positions stay as they are."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed_positions" not in name:
            turned = any(part in name for part in BY_NEURON)
            vectors = parameter.T if turned else parameter
            rounded = Matrix.quantised(vectors.contiguous(), block_format).widened(slice(None))
            parameter.copy_(rounded.T if turned else rounded)


def random_ids(vocab_size, count=TOKENS, seed=0):
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def check(source, folder, mode="dense", tolerance=TOLERANCE, kv_format="f32", weight_format="auto"):
    pack(source, folder / "model", weight_format)
    with open_engine(folder / "model", mode=mode, kv_format=kv_format) as engine:
        ids = random_ids(engine.directory.spec.vocab_size)
        expected = reference_logits(source, ids, weight_format if is_quantised(weight_format) else None)
        scale = expected.abs().max().item()
        assert scale > 0.5, "logits near zero would agree whatever was computed"
        for one_by_one in (False, True):
            found = engine.logits(ids, one_by_one)
            assert (found - expected).abs().max().item() <= tolerance * max(1.0, scale)


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_llama_with_relu_and_grouped_heads(make_llama, tmp_path, mode):
    check(make_llama(tmp_path), tmp_path, mode)


def test_llama_with_silu_tied(make_llama, tmp_path):
    check(make_llama(tmp_path, hidden_act="silu", tie_word_embeddings=True), tmp_path)


def test_llama_3_rope_scaling(make_llama, llama3_rope, tmp_path):
    check(make_llama(tmp_path, rope_parameters=llama3_rope), tmp_path)


def test_llama_with_one_kv_head_and_a_head_size_of_its_own(make_llama, tmp_path):
    check(make_llama(tmp_path, num_key_value_heads=1, head_dim=14), tmp_path)


def test_mistral_with_a_sliding_window_shorter_than_the_text(make_mistral, tmp_path):
    check(make_mistral(tmp_path), tmp_path)


def test_mistral_without_a_window(make_mistral, tmp_path):
    check(make_mistral(tmp_path, sliding_window=None, hidden_act="relu"), tmp_path, "exact")


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_opt(make_opt, tmp_path, mode):
    check(make_opt(tmp_path), tmp_path, mode)


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_arcee(make_arcee, tmp_path, mode):
    check(make_arcee(tmp_path), tmp_path, mode)


def test_arcee_with_biases_a_head_size_of_its_own_and_llama_3_rope_scaling(make_arcee, llama3_rope, tmp_path):
    options = {"attention_bias": True, "mlp_bias": True, "head_dim": 14, "rope_parameters": llama3_rope}
    check(make_arcee(tmp_path, tie_word_embeddings=True, **options), tmp_path, "exact")


def test_llama_with_a_squared_gate(make_llama, tmp_path):
    check(make_llama(tmp_path, hidden_act="relu2"), tmp_path, "exact")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {}),
        (
            "qwen2",
            {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
        ),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 30}),
        ("nemotron", {}),
        ("nemotron", {"attention_bias": True, "mlp_bias": True, "head_dim": 14, "partial_rotary_factor": 1.0}),
        ("falcon", {}),
        ("falcon", {"num_ln_in_parallel_attn": 1, "bias": True, "tie_word_embeddings": False, "activation": "gelu"}),
        ("falcon", {"new_decoder_architecture": False}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 6}),
        ("falcon", {"new_decoder_architecture": False, "parallel_attn": False, "bias": True}),
        (
            "falcon",
            {"new_decoder_architecture": False, "parallel_attn": False, "multi_query": False, "num_kv_heads": 6},
        ),
        ("falcon", {"activation": "gelu_new", "ffn_hidden_size": None}),
        ("gpt_neox", {"hidden_act": "relu"}),
        ("gpt_neox", {"hidden_act": "gelu", "use_parallel_residual": False, "rotary_pct": 1.0}),
        ("gpt_neox", {"hidden_act": "gelu_fast", "tie_word_embeddings": True, "attention_bias": False}),
        ("bamboo", {}),
        ("prosparse", {}),
        ("prosparse", {"hidden_act_param": 0.01, "tie_word_embeddings": True}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_other_families(make_family, tmp_path, family, options):
    source = make_family(family, tmp_path, **options)
    for mode in ("dense", "exact"):
        (tmp_path / mode).mkdir()
        check(source, tmp_path / mode, mode)


@pytest.mark.parametrize("block_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24}),
        ("nemotron", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24, "partial_rotary_factor": 0.5}),
        ("falcon", {"hidden_size": 64, "num_attention_heads": 4}),
        ("gpt_neox", {"hidden_size": 64, "num_attention_heads": 4, "rotary_pct": 0.25}),
        ("bamboo", {"hidden_size": 64, "num_attention_heads": 4}),
        # At its threshold the activation jumps: rounding to 8 bits makes it jump by as much as that is.
        ("prosparse", {"hidden_size": 64, "num_attention_heads": 4, "hidden_act_param": 0.01}),
    ],
)
def test_blocks_of_weights_in_other_families(make_family, tmp_path, family, options, block_format):
    check(make_family(family, tmp_path, **options), tmp_path, "exact", ROUNDED, weight_format=block_format)


def test_sixteen_bit_pages_stay_within_what_the_format_explains(make_llama, tmp_path):
    check(make_llama(tmp_path), tmp_path, kv_format="f16", tolerance=2e-3)


def test_weights_rounded_to_f16_stay_within_what_the_format_explains(make_llama, tmp_path):
    check(make_llama(tmp_path, dtype=torch.float32), tmp_path, weight_format="f16", tolerance=4e-3)


def test_weights_rounded_to_bf16_stay_within_what_the_format_explains(make_llama, tmp_path):
    check(make_llama(tmp_path, dtype=torch.float32), tmp_path, weight_format="bf16", tolerance=3e-2)


@pytest.mark.parametrize("block_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_blocks_of_weights_in_every_family(
    make_llama, make_mistral, make_opt, make_arcee, tmp_path, block_format, mode
):
    options = {"mode": mode, "tolerance": ROUNDED, "weight_format": block_format}
    for make, sizes in (
        (make_llama, {"hidden_size": 96, "head_dim": 16}),
        (make_mistral, {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24, "num_key_value_heads": 1}),
        (make_opt, {"hidden_size": 64}),
        (make_arcee, {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24}),
    ):
        source = make(tmp_path, **sizes)
        folder = tmp_path / f"{source.name}-packed"
        folder.mkdir()
        check(source, folder, **options)
