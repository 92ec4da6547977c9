"""GGUF files are read as the Hugging Face folder with the same weights is, whatever the family and the type."""

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
