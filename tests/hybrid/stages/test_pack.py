"""`hybrid pack`: what it writes is what transformers saved, in whatever container, format and type."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.blocks import encode


@pytest.fixture
def copy(llama_checkpoint, tmp_path):
    """A Llama checkpoint to change."""
    return shutil.copytree(llama_checkpoint, tmp_path / "copy")


def change_weights(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def check_llama(path, theirs, dtype):
    """Every tensor of a packed Llama against those of the checkpoint, rounded to the packed type."""
    with ModelDirectory.open(path) as directory:
        directory.verify()
        spec = directory.spec
        assert torch.equal(directory.matrix("embed.weight").data, theirs["model.embed_tokens.weight"].to(dtype))
        assert torch.equal(directory.matrix("head.weight").data, theirs["lm_head.weight"].to(dtype))
        assert torch.equal(directory.dense("final_norm.weight"), theirs["model.norm.weight"].float())
        for i in range(spec.n_layers):
            prefix, layer = f"model.layers.{i}", directory.layer(i)
            for name in ("q", "k", "v", "o"):
                expected = theirs[f"{prefix}.self_attn.{name}_proj.weight"].to(dtype)
                assert torch.equal(directory.matrix(f"layers.{i}.{name}.weight").data, expected)
            for part in ("gate", "up"):
                assert torch.equal(layer.part(part).data, theirs[f"{prefix}.mlp.{part}_proj.weight"].to(dtype))
            assert torch.equal(layer.part("down").data, theirs[f"{prefix}.mlp.down_proj.weight"].T.to(dtype))
            assert layer.bias is None
            assert torch.equal(
                directory.dense(f"layers.{i}.ffn_norm.weight"),
                theirs[f"{prefix}.post_attention_layernorm.weight"].float(),
            )


@pytest.mark.parametrize(
    ("stored", "asked", "packed"),
    [
        (torch.bfloat16, "auto", "bf16"),
        (torch.float16, "auto", "f16"),
        (torch.float32, "auto", "bf16"),
        (torch.float64, "auto", "bf16"),
        (torch.float32, "f16", "f16"),
        (torch.bfloat16, "f16", "f16"),
        (torch.float16, "bf16", "bf16"),
    ],
)
def test_every_value_of_every_tensor(copy, tmp_path, stored, asked, packed):
    change_weights(copy, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    report = pack(copy, tmp_path / "model", asked)
    assert report.weight_format == packed
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[packed]
    check_llama(tmp_path / "model", load_file(copy / "model.safetensors"), dtype)


def whole_blocks(make, folder, **options):
    """A checkpoint whose sizes are whole blocks of 32; 96 weights are three, and the heads' 64 two."""
    return make(folder, hidden_size=96, num_attention_heads=4, **options)


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
def test_quantised_llama(make_llama, tmp_path, weight_format, stored, monkeypatch):
    monkeypatch.setattr("hybrid.stages.pack.BLOCK_BYTES", 20_000)
    monkeypatch.setattr("hybrid.checkpoint.reader.BLOCK_BYTES", 5000)
    path = whole_blocks(make_llama, tmp_path, head_dim=16, num_key_value_heads=2, dtype=torch.float32)
    change_weights(path, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    theirs = load_file(path / "model.safetensors")
    report = pack(path, tmp_path / "model", weight_format)
    assert report.weight_format == weight_format
    assert report.source_digest == pack(path, tmp_path / "other").source_digest
    with ModelDirectory.open(tmp_path / "model") as directory:
        directory.verify()
        for i in range(directory.spec.n_layers):
            layer, prefix = directory.layer(i), f"model.layers.{i}"
            assert layer.weight_format == weight_format and layer.rows.dtype == torch.uint8
            assert layer.rows.shape == (123, directory.stride_bytes)
            width = layer.part("up").nbytes // 123
            assert not layer.rows[:, 3 * width :].any() and 0 <= directory.stride_bytes - 3 * width < 64
            names = [
                *((n, f"self_attn.{n}_proj") for n in "qkvo"),
                *((n, f"mlp.{n}_proj") for n in ("gate", "up", "down")),
            ]
            for ours, name in names:
                values = theirs[f"{prefix}.{name}.weight"].float()
                in_rows = ours in layer.parts
                matrix = layer.part(ours) if in_rows else directory.matrix(f"layers.{i}.{ours}.weight")
                expected = values.T if ours == "down" else values
                assert matrix.weight_format == weight_format and matrix.shape == tuple(expected.shape)
                assert torch.equal(matrix.data, encode(expected, weight_format))
            norm = theirs[f"{prefix}.input_layernorm.weight"].float()
            assert torch.equal(directory.dense(f"layers.{i}.attn_norm.weight"), norm)
        for ours, name in (("embed", "model.embed_tokens"), ("head", "lm_head")):
            assert torch.equal(directory.matrix(f"{ours}.weight").data, encode(theirs[f"{name}.weight"], weight_format))


def test_quantised_opt_keeps_positions_biases_and_norms(make_opt, tmp_path):
    path = make_opt(tmp_path, hidden_size=64, word_embed_proj_dim=64)
    theirs = load_file(path / "model.safetensors")
    pack(path, tmp_path / "model", "q4_0")
    with ModelDirectory.open(tmp_path / "model") as directory:
        positions = directory.matrix("positions.weight")
        assert positions.weight_format == "f16"
        assert torch.equal(positions.data, theirs["model.decoder.embed_positions.weight"].half())
        layer, prefix = directory.layer(2), "model.decoder.layers.2"
        assert torch.equal(layer.bias, theirs[f"{prefix}.fc1.bias"].float())
        assert torch.equal(directory.dense("layers.2.down.bias"), theirs[f"{prefix}.fc2.bias"].float())
        assert torch.equal(layer.part("up").data, encode(theirs[f"{prefix}.fc1.weight"], "q4_0"))
        assert torch.equal(layer.part("down").data, encode(theirs[f"{prefix}.fc2.weight"].T, "q4_0"))


@pytest.mark.parametrize(
    ("sizes", "named"), [({}, 60), ({"hidden_size": 64, "num_attention_heads": 8, "head_dim": 10}, 80)]
)
def test_sizes_that_are_no_whole_blocks_are_refused_before_anything_is_written(make_llama, tmp_path, sizes, named):
    path = make_llama(tmp_path, **sizes)
    with pytest.raises(UserError, match=f"q8_0 stores blocks of 32 weights, and a vector of {named} .* bf16 and f16"):
        pack(path, tmp_path / "model", "q8_0")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_scale_beyond_half_names_the_tensor_and_leaves_nothing(make_llama, tmp_path):
    path = whole_blocks(make_llama, tmp_path)
    change_weights(path, lambda t: t["model.layers.1.mlp.down_proj.weight"].view(-1)[9:10].fill_(1e9))
    with pytest.raises(
        UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: a weight of 9.98e\+08 needs .*--format"
    ):
        pack(path, tmp_path / "model", "q4_0")
    assert sorted(tmp_path.iterdir()) == [path]


def test_reordered_rows_of_blocks_stay_whole(make_llama, tmp_path):
    path = whole_blocks(make_llama, tmp_path)
    pack(path, tmp_path / "model", "q4_0")
    order = np.random.default_rng(0).permutation(123).astype(np.int32)
    with ModelDirectory.open(tmp_path / "model") as before:
        expected = before.layer(1).part("down").widened(torch.from_numpy(order).long())
        before.reorder_layer(1, order)
    with ModelDirectory.open(tmp_path / "model") as after:
        after.verify()
        assert torch.equal(after.layer(1).part("down").widened(slice(None)), expected)


def test_blocks_smaller_than_a_tensor(copy, tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid.stages.pack.BLOCK_BYTES", 5000)
    monkeypatch.setattr("hybrid.checkpoint.reader.BLOCK_BYTES", 1000)
    monkeypatch.setattr("hybrid.stages.pack.STRIP", 4)
    pack(copy, tmp_path / "model")
    check_llama(tmp_path / "model", load_file(copy / "model.safetensors"), torch.bfloat16)


def test_containers_and_formats_give_the_digests_they_should(copy, llama_directory, tmp_path):
    (torch_copy := tmp_path / "torch").mkdir()
    torch.save(load_file(copy / "model.safetensors"), torch_copy / "pytorch_model.bin")
    shutil.copy(copy / "config.json", torch_copy)
    original = ModelDirectory.open(llama_directory)
    from_torch, as_f16 = pack(torch_copy, tmp_path / "a"), pack(copy, tmp_path / "b", "f16")
    assert from_torch.source_digest == as_f16.source_digest == original.source_digest
    assert as_f16.pack_digest != original.pack_digest
    assert pack(copy, tmp_path / "c").pack_digest == original.pack_digest
    assert any("no tokenizer" in note for note in from_torch.notes)


def test_mistral(make_mistral, tmp_path):
    path = make_mistral(tmp_path, hidden_act="silu")
    pack(path, tmp_path / "model")
    check_llama(tmp_path / "model", load_file(path / "model.safetensors"), torch.bfloat16)


def test_tied_embeddings_are_stored_once(make_llama, tmp_path):
    pack(make_llama(tmp_path, tie_word_embeddings=True), tmp_path / "model")
    with ModelDirectory.open(tmp_path / "model") as directory:
        assert directory.spec.tied_embeddings
        with pytest.raises(KeyError):
            directory.matrix("head.weight")


def test_opt_without_biases(make_opt, tmp_path):
    pack(make_opt(tmp_path, enable_bias=False), tmp_path / "model")
    with ModelDirectory.open(tmp_path / "model") as directory:
        assert directory.layer(0).bias is None
        directory.dense("layers.0.attn_norm.bias")
        directory.verify()


def test_tokenizer_and_settings_are_kept_as_they_are(llama_checkpoint, llama_directory, opt_checkpoint, opt_directory):
    for source, packed, names in (
        (llama_checkpoint, llama_directory, ["tokenizer.model", "tokenizer_config.json", "generation_config.json"]),
        (opt_checkpoint, opt_directory, ["vocab.json", "merges.txt", "special_tokens_map.json"]),
    ):
        for name in names:
            assert (packed / name).read_bytes() == (source / name).read_bytes()
        assert (packed / "source_config.json").read_bytes() == (source / "config.json").read_bytes()


def test_the_report_and_the_progress(llama_checkpoint, tmp_path):
    told = []
    report = pack(llama_checkpoint, tmp_path / "model", progress=lambda done, total: told.append((done, total)))
    files = [p for p in (tmp_path / "model").rglob("*") if p.is_file() and p.name not in ("model.json", "origin.json")]
    assert (report.files, report.bytes) == (len(files), sum(p.stat().st_size for p in files))
    assert report.destination == tmp_path / "model"
    assert report.peak_memory > 1 << 20 and report.seconds > 0
    assert report.notes == ()
    weights = sum(p.stat().st_size for p in files if p.suffix == ".safetensors")
    assert told[-1] == (weights, weights)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert (report.source_digest, report.pack_digest) == tuple(
        json.loads((tmp_path / "model" / "model.json").read_text())[name] for name in ("source_digest", "pack_digest")
    )


def test_an_empty_folder_may_be_the_destination(llama_checkpoint, tmp_path):
    (tmp_path / "model").mkdir()
    pack(llama_checkpoint, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_links_as_in_the_cache_of_the_hub(copy, tmp_path):
    (snapshot := tmp_path / "snapshot").mkdir()
    for file in copy.iterdir():
        (snapshot / file.name).symlink_to(file)
    pack(snapshot, tmp_path / "model")
    check_llama(tmp_path / "model", load_file(copy / "model.safetensors"), torch.bfloat16)
    assert not any(p.is_symlink() for p in (tmp_path / "model").rglob("*"))


def test_packing_warns_of_nothing(copy, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(copy, tmp_path / "model")


def test_overflow_of_f16_names_the_tensor_and_the_way_out(copy, tmp_path):
    change_weights(copy, lambda t: t["model.layers.1.mlp.down_proj.weight"].view(-1)[9:10].fill_(983040))
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight has a value of 9.83e\+05.*--format"):
        pack(copy, tmp_path / "model", "f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]
    pack(copy, tmp_path / "model")


def test_values_that_are_not_finite_stop_the_pack_and_leave_nothing(copy, tmp_path):
    change_weights(copy, lambda t: t["model.layers.2.mlp.gate_proj.weight"][3].fill_(float("nan")))
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.gate_proj\.weight in model\.safetensors has NaN"):
        pack(copy, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]
