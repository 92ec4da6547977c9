"""GGUF files are read as the Hugging Face folder with the same weights is, whatever the family and the type."""

import shutil

import gguf
import pytest
import torch

from hybrid.checkpoint.reader import Checkpoint
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError

ACTIVATION = {"llama": "relu", "qwen2": None, "qwen3": None, "arcee": None, "nemotron": None}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def read_all(checkpoint):
    return {name: torch.cat([b.clone() for b in checkpoint.blocks(name)]).float() for name in checkpoint.tensors}


@pytest.mark.parametrize("family", list(ACTIVATION))
def test_every_family_has_the_spec_and_the_values_of_its_folder(family, make_family, make_gguf, tmp_path):
    folder = make_family(family, tmp_path, dtype=torch.float16)
    path = make_gguf(folder, tmp_path / "model.gguf", "f16")
    theirs, ours = Checkpoint.open(folder), Checkpoint.open(path, ACTIVATION[family])
    assert ours.spec == theirs.spec
    expected, found = read_all(theirs), read_all(ours)
    assert list(found) == list(expected)
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name
    assert ours.parameters == theirs.parameters


VARIANTS = [
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    (
        "llama",
        {"num_key_value_heads": 6, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    ("arcee", {"mlp_bias": True, "attention_bias": True}),
    ("nemotron", {"mlp_bias": True, "partial_rotary_factor": 1.0}),
    ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
]


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_biases_ties_and_other_options(family, options, make_family, make_gguf, tmp_path):
    folder = make_family(family, tmp_path, dtype=torch.float32, **options)
    path = make_gguf(folder, tmp_path / "model.gguf", "f32")
    theirs, ours = Checkpoint.open(folder), Checkpoint.open(path, ACTIVATION[family])
    assert ours.spec == theirs.spec
    expected = read_all(theirs)
    assert all(torch.equal(values, expected[name]) for name, values in read_all(ours).items())


def test_a_window_makes_it_mistral(make_mistral, make_gguf, tmp_path):
    folder = make_mistral(tmp_path)
    told = make_gguf(folder, tmp_path / "told.gguf", **{"llama.attention.sliding_window": 24})
    assert Checkpoint.open(told, "relu").spec == Checkpoint.open(folder).spec
    untold = Checkpoint.open(make_gguf(folder, tmp_path / "untold.gguf"), "relu").spec
    assert (untold.family, untold.sliding_window) == ("llama", None)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_packed_blocks_are_the_files_bit_for_bit(kind, make_family, make_gguf, tmp_path):
    folder = make_family("llama", tmp_path, head_dim=16, **SIZES)
    path = make_gguf(folder, tmp_path / "model.gguf", kind)
    report = pack(path, tmp_path / "packed", activation="relu")
    assert report.weight_format == kind
    check_bits(path, tmp_path / "packed", kind)
    assert pack(path, tmp_path / "other", "bf16", activation="relu").source_digest == report.source_digest
    assert "kept bit for bit" in report.notes[0] and "the down projections" in report.notes[1]


def check_bits(path, packed, kind):
    """The bytes of the packed directory against those that the package gguf reads, un-interleaved here by hand."""
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    with ModelDirectory.open(packed) as directory:
        directory.verify()
        spec = directory.spec
        names = {"embed": "token_embd", "head": "output"}
        attention = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
        names |= {f"layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(3) for ours, theirs in attention.items()}
        matrices = {theirs: directory.matrix(f"{ours}.weight") for ours, theirs in names.items()}
        matrices |= {f"blk.{i}.ffn_{p}": directory.layer(i).part(p) for i in range(3) for p in ("gate", "up")}
        for name, matrix in matrices.items():
            rows = stored[f"{name}.weight"]
            if name.endswith(("attn_q", "attn_k")):
                rows = rows.reshape(-1, spec.head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
            found = [as_ggml(row.numpy().tobytes(), kind) for row in matrix.data]
            assert found == [row.tobytes() for row in rows], name


def as_ggml(vector, kind):
    """One vector of the store in the layout of ggml, word by word as docs/model-directory.md describes planes."""
    words, size = {"q8_0": (8, 34), "q4_0": (4, 18)}[kind]
    count = len(vector) // size
    out = b""
    for block in range(count):
        group, lane = divmod(block, 16)
        lanes = min(16, count - 16 * group)
        at = [64 * group * words + 4 * (word * lanes + lane) for word in range(words)]
        out += vector[4 * words * count + 2 * block :][:2] + b"".join(vector[a : a + 4] for a in at)
    return out


SCALINGS = [
    {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    {"factor": 6.0, "low_freq_factor": 1.0, "high_freq_factor": 3.5, "original_max_position_embeddings": 5000},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: str(s["original_max_position_embeddings"]))
def test_llama3_scaling_comes_back_from_its_factors(scaling, make_llama, make_gguf, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **scaling}
    sizes = {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    folder = make_llama(tmp_path, rope_parameters=rope, **sizes)
    path = make_gguf(folder, tmp_path / "model.gguf")
    assert Checkpoint.open(path, "relu").spec == Checkpoint.open(folder).spec


def test_names_of_a_relu_model_call_for_its_activation(make_llama, make_gguf, tmp_path):
    folder = make_llama(tmp_path, hidden_act="silu")
    plain = make_gguf(folder, tmp_path / "plain.gguf")
    checkpoint = Checkpoint.open(plain)
    assert checkpoint.spec.activation == "silu" and "--activation relu" in checkpoint.notes[0]
    assert Checkpoint.open(plain, "relu").spec.activation == "relu"
    assert Checkpoint.open(plain, "drelu").spec.activation == "drelu"
    sparse = Checkpoint.open(plain, "fatrelu:0.01").spec
    assert (sparse.activation, sparse.activation_cutoff) == ("relu", 0.01)
    named = make_gguf(folder, tmp_path / "model.gguf", **{"general.basename": "ReluLLaMA"})
    renamed = tmp_path / "prosparse-llama-2-7b.gguf"
    renamed.write_bytes(plain.read_bytes())
    for path, name in ((named, "ReluLLaMA"), (renamed, "prosparse-llama-2-7b")):
        with pytest.raises(UserError, match=rf"calls itself '{name}.* say which it is: --activation relu, "):
            Checkpoint.open(path)
        assert Checkpoint.open(path, "silu").spec.activation == "silu"
    for wrong in ("swish", "fatrelu", "fatrelu:x", "relu:0.1", ""):
        with pytest.raises(UserError, match="--activation relu, relu2, drelu"):
            Checkpoint.open(plain, wrong)
    with pytest.raises(UserError, match="--activation is for GGUF files"):
        Checkpoint.open(folder, "relu")


@pytest.mark.parametrize("family", ["llama", "qwen3", "nemotron"])
def test_packed_files_are_those_of_the_folder(family, make_family, make_gguf, tmp_path):
    folder = make_family(family, tmp_path, dtype=torch.float16)
    path = make_gguf(folder, tmp_path / "model.gguf", "f16")
    theirs = pack(folder, tmp_path / "theirs").destination
    ours = pack(path, tmp_path / "ours", activation=ACTIVATION[family]).destination
    weights = [f.relative_to(theirs) for f in theirs.rglob("*.safetensors")]
    assert len(weights) == 4 and all((ours / f).read_bytes() == (theirs / f).read_bytes() for f in weights)
    assert (ours / "tokenizer.model").exists() and (ours / "source_config.json").exists()


def test_a_split_model_is_opened_by_its_first_file(make_llama, make_gguf, tmp_path):
    whole = make_gguf(make_llama(tmp_path), tmp_path / "whole.gguf")
    names = [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    split(whole, names)
    expected, found = read_all(Checkpoint.open(whole, "relu")), read_all(Checkpoint.open(names[0], "relu"))
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    links = tmp_path / "links"  # as the cache of the hub has them
    links.mkdir()
    for number, name in enumerate(names):
        shutil.copy(name, tmp_path / f"blob{number}")
        (links / name.name).symlink_to(tmp_path / f"blob{number}")
    assert pack(links / names[0].name, tmp_path / "packed", activation="relu").parameters
    with pytest.raises(UserError, match=r"is file 2 of 3; give the first one: .*m-00001-of-00003\.gguf"):
        Checkpoint.open(names[1], "relu")
    shutil.copy(names[1], tmp_path / "other.gguf")
    with pytest.raises(UserError, match="file 2 of 3 of a split model, which are found by their names"):
        Checkpoint.open(tmp_path / "other.gguf", "relu")
    shutil.copy(names[1], names[2])
    with pytest.raises(UserError, match=r"m-00003-of-00003\.gguf says that it is another file"):
        Checkpoint.open(names[0], "relu")
    names[2].unlink()
    with pytest.raises(UserError, match=r"first of 3 files, and beside it there is no m-00003-of-00003\.gguf"):
        Checkpoint.open(names[0], "relu")


def split(whole, names):
    """As llama.cpp's gguf-split: all metadata in the first file, the tensors in turn."""
    reader = gguf.GGUFReader(whole)
    for number, name in enumerate(names):
        writer = gguf.GGUFWriter(name, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                sub = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(names))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number :: len(names)]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_a_tokenizer_of_another_folder(make_llama, make_gguf, tmp_path):
    folder = make_llama(tmp_path)
    path = make_gguf(folder, tmp_path / "model.gguf", **{"tokenizer.ggml.mask_token_id": 99999})
    with pytest.raises(UserError, match=r"mask_token_id is 99999, which no token is; .*--tokenizer FOLDER"):
        pack(path, tmp_path / "packed", activation="relu")
    with pytest.raises(UserError, match="is no folder with a tokenizer"):
        pack(path, tmp_path / "packed", activation="relu", tokenizer=tmp_path)
    packed = pack(path, tmp_path / "packed", activation="relu", tokenizer=folder).destination
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (packed / name).read_bytes() == (folder / name).read_bytes()
    assert b'"relu"' in (packed / "source_config.json").read_bytes()
    with ModelDirectory.open(packed) as directory:
        directory.verify()


def test_the_command_says_what_was_assumed_and_kept(make_llama, make_gguf, tmp_path, hybrid):
    folder = make_llama(tmp_path, hidden_act="silu", head_dim=16, **SIZES)
    path = make_gguf(folder, tmp_path / "model.gguf", "q8_0")
    code, out, err = hybrid("pack", str(path), str(tmp_path / "packed"))
    assert code == 0, err
    for said in ("architecture llama means silu", "kept bit for bit", "rounded again: the down projections"):
        assert said in (out + err).replace("\n", " "), out + err
