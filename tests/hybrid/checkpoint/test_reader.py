"""A checkpoint as this project sees it: names, shapes, values, digest; everything unexpected refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid.checkpoint.names import dense_shapes, neuron_tensors, tensor_shapes
from hybrid.checkpoint.reader import Checkpoint
from profiler.artifacts import UserError


@pytest.fixture
def copy(llama_checkpoint, tmp_path):
    """A Llama checkpoint to change."""
    return shutil.copytree(llama_checkpoint, tmp_path / "copy")


def change_weights(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def change_config(path, **keys):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **keys}))


def read_all(checkpoint, rows=None):
    return {n: torch.cat([b.clone() for b in checkpoint.blocks(n, rows)]) for n in checkpoint.tensors}


def digest_of(path, rows=None):
    checkpoint = Checkpoint.open(path)
    read_all(checkpoint, rows)
    return checkpoint.source_digest()


def assert_named(path, pairs):
    """Nothing is lost, and the tensors by our names are those by transformers' names."""
    theirs, ours = load_file(path / "model.safetensors"), read_all(Checkpoint.open(path))
    assert len(ours) == len(theirs)
    for mine, yours in pairs.items():
        assert torch.equal(ours[mine], theirs[yours])


def test_names_of_llama(llama_checkpoint):
    pairs = {
        "embed.weight": "model.embed_tokens.weight",
        "layers.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
        "layers.1.q.weight": "model.layers.1.self_attn.q_proj.weight",
        "layers.2.o.weight": "model.layers.2.self_attn.o_proj.weight",
        "layers.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "layers.0.gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "layers.0.down.weight": "model.layers.0.mlp.down_proj.weight",
        "final_norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    assert_named(llama_checkpoint, pairs)


def test_names_of_opt(opt_checkpoint):
    pairs = {
        "positions.weight": "model.decoder.embed_positions.weight",
        "layers.1.attn_norm.bias": "model.decoder.layers.1.self_attn_layer_norm.bias",
        "layers.1.o.bias": "model.decoder.layers.1.self_attn.out_proj.bias",
        "layers.2.ffn_norm.weight": "model.decoder.layers.2.final_layer_norm.weight",
        "layers.0.up.bias": "model.decoder.layers.0.fc1.bias",
        "layers.0.down.bias": "model.decoder.layers.0.fc2.bias",
        "final_norm.bias": "model.decoder.final_layer_norm.bias",
    }
    assert_named(opt_checkpoint, pairs)


def test_names_of_arcee(make_arcee, tmp_path):
    path = make_arcee(tmp_path, mlp_bias=True)
    pairs = {
        "layers.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
        "layers.1.k.weight": "model.layers.1.self_attn.k_proj.weight",
        "layers.2.ffn_norm.weight": "model.layers.2.post_attention_layernorm.weight",
        "layers.0.up.weight": "model.layers.0.mlp.up_proj.weight",
        "layers.0.up.bias": "model.layers.0.mlp.up_proj.bias",
        "layers.2.down.weight": "model.layers.2.mlp.down_proj.weight",
        "layers.2.down.bias": "model.layers.2.mlp.down_proj.bias",
    }
    assert_named(path, pairs)


def test_every_option_of_a_family_names_what_transformers_saves(make_llama, make_opt, make_arcee, tmp_path):
    for path in (
        make_arcee(tmp_path),
        make_arcee(tmp_path, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=14),
        make_llama(tmp_path, attention_bias=True, tie_word_embeddings=True),
        make_llama(tmp_path, head_dim=14),
        make_opt(tmp_path, enable_bias=False),
    ):
        assert len(Checkpoint.open(path).tensors) == len(load_file(path / "model.safetensors"))


def test_dense_and_neuron_tensors_are_all_tensors(opt_checkpoint):
    spec = Checkpoint.open(opt_checkpoint).spec
    neurons = [name for layer in range(spec.n_layers) for name in neuron_tensors(spec, layer)]
    assert sorted([*dense_shapes(spec), *neurons]) == sorted(tensor_shapes(spec))
    assert list(neuron_tensors(spec, 2)) == ["layers.2.up.weight", "layers.2.down.weight", "layers.2.up.bias"]


def test_parameters_are_those_that_torch_counts(llama_checkpoint):
    theirs = load_file(llama_checkpoint / "model.safetensors")
    assert Checkpoint.open(llama_checkpoint).parameters == sum(t.numel() for t in theirs.values())


def test_the_digest_depends_on_values_and_not_on_files_or_blocks(copy, tmp_path):
    expected = digest_of(copy)
    assert digest_of(copy, rows=7) == expected
    tensors = load_file(copy / "model.safetensors")

    torch_copy = shutil.copytree(copy, tmp_path / "torch")
    (torch_copy / "model.safetensors").unlink()
    torch.save(tensors, torch_copy / "pytorch_model.bin")
    assert digest_of(torch_copy) == expected

    sharded = shutil.copytree(copy, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    files = {name: f"model-{len(name) % 3}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert digest_of(sharded) == expected

    change_weights(copy, lambda t: t["model.norm.weight"][3:4].add_(1))
    assert digest_of(copy) != expected


def test_the_digest_depends_on_the_stored_type(copy):
    before = digest_of(copy)
    change_weights(copy, lambda t: t.update({n: v.float() for n, v in t.items()}))
    assert digest_of(copy) != before


def test_checkpoints_without_the_prefix_of_the_model(copy, opt_checkpoint, tmp_path):
    opt = shutil.copytree(opt_checkpoint, tmp_path / "opt")
    for path in (copy, opt):
        before = digest_of(path)
        tensors = {n.removeprefix("model."): t for n, t in load_file(path / "model.safetensors").items()}
        save_file(tensors, path / "model.safetensors")
        assert digest_of(path) == before


def test_a_name_with_and_without_the_prefix(copy):
    change_weights(copy, lambda t: t.update({"norm.weight": t["model.norm.weight"].clone()}))
    with pytest.raises(UserError, match="both"):
        Checkpoint.open(copy)


def test_harmless_tensors_are_ignored(copy):
    before = digest_of(copy)
    change_weights(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}))
    assert digest_of(copy) == before


def test_a_tied_head_may_be_stored_if_it_is_the_embeddings(make_llama, tmp_path):
    path = make_llama(tmp_path, tie_word_embeddings=True)
    before = digest_of(path)
    change_weights(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert digest_of(path) == before
    change_weights(path, lambda t: t["lm_head.weight"][5].add_(1))
    with pytest.raises(UserError, match=r"lm_head\.weight differs.*tie_word_embeddings to false"):
        Checkpoint.open(path)


def test_a_tied_config_with_an_untied_head(copy):
    change_config(copy, tie_word_embeddings=True)
    with pytest.raises(UserError, match="tie_word_embeddings"):
        Checkpoint.open(copy)


def test_a_missing_tensor_is_named_with_its_shape(copy):
    change_weights(copy, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight \[123, 60\]"):
        Checkpoint.open(copy)


def test_another_shape_is_named_with_both(copy):
    change_weights(copy, lambda t: t.update({"model.norm.weight": torch.ones(61)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight in model\.safetensors has shape \[61\].*implies \[60\]"):
        Checkpoint.open(copy)


def test_a_scalar_is_another_shape(copy):
    change_weights(copy, lambda t: t.update({"model.norm.weight": torch.tensor(1.0)}))
    with pytest.raises(UserError, match=r"has shape \[\]"):
        Checkpoint.open(copy)


def test_absurd_sizes_in_the_config_are_refused_before_allocation(copy):
    change_config(copy, hidden_size=131072, intermediate_size=1 << 20, num_hidden_layers=1024)
    with pytest.raises(UserError, match="implies"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.gate_proj.bias", "model.layers.9.mlp.up_proj.weight", "extra"])
def test_tensors_that_the_architecture_does_not_have(copy, name):
    change_weights(copy, lambda t: t.update({name: torch.ones(3)}))
    with pytest.raises(UserError, match=f"does not have, for example (model.)?{name}"):
        Checkpoint.open(copy)


def test_quantised_weights_are_refused(copy):
    change_weights(
        copy,
        lambda t: t.update(
            {"model.layers.1.mlp.up_proj.weight": t["model.layers.1.mlp.up_proj.weight"].to(torch.float8_e4m3fn)}
        ),
    )
    with pytest.raises(UserError, match=r"F8_E4M3.*16-bit original"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
def test_values_that_are_not_finite_are_refused_with_tensor_and_shard(copy, name, value):
    change_weights(copy, lambda t: t[name].view(-1)[-1:].fill_(value))
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(UserError, match=f"{name} in model.safetensors has NaN or infinite"):
        read_all(checkpoint, rows=5)


def test_what_is_no_checkpoint(copy, llama_directory, tmp_path):
    cases = {
        tmp_path / "nothing": "does not exist",
        copy / "config.json": "not a GGUF file",
        tmp_path: r"no config\.json",
        llama_directory: "already packed",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            Checkpoint.open(path)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="merge it into its base model first"):
        Checkpoint.open(copy)


def test_a_config_larger_than_any_is_not_parsed(copy):
    (copy / "config.json").write_text("[" * (2 << 20))
    with pytest.raises(UserError, match=r"at most 1\.0 MiB"):
        Checkpoint.open(copy)


def test_an_adapter_folder_without_config_is_called_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="merge"):
        Checkpoint.open(tmp_path)
