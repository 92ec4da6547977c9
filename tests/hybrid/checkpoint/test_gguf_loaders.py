"""GGUF against transformers' own loader of such files, and against the package gguf, which knows every type."""

import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from hybrid.checkpoint.reader import Checkpoint
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.blocks import encode

# Sizes of whole blocks of 256, which K-quants have.
BIG = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
OTHERS = ["Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S", "TQ1_0", "MXFP4"]


def read_all(checkpoint):
    return {name: torch.cat([b.clone() for b in checkpoint.blocks(name)]).float() for name in checkpoint.tensors}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "nemotron"])
def test_transformers_reads_the_same_weights(family, make_family, make_gguf, tmp_path):
    """Its loader puts heads back, shifts and names on its own; its weights are read as a folder here."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    sizes |= {} if family == "nemotron" else {"hidden_act": "silu"}
    if family == "qwen3":
        sizes["head_dim"] = 128  # its loader does not read this key of Qwen3
    folder = make_family(family, tmp_path, dtype=torch.float32, **sizes)
    extra = {"nemotron.attention.layer_norm_rms_epsilon": 1e-5} if family == "nemotron" else {}
    path = make_gguf(folder, tmp_path / "model.gguf", "f32", **extra)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(folder / "config.json", theirs)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, theirs / "model.safetensors")
    expected, found = read_all(Checkpoint.open(theirs)), read_all(Checkpoint.open(path))
    assert set(found) == set(expected)
    for name, values in found.items():
        assert torch.allclose(values, expected[name], atol=1e-6, rtol=0), name  # nemotron's norms: minus 1, plus 1


def rewritten(path, kind, seed=0):
    """The file with every matrix of K-quant width replaced by blocks of that type, of random bits."""
    reader, generator = gguf.GGUFReader(path), np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path.with_suffix(".k.gguf"), "llama")
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture")):
            continue
        main = field.types[0]
        writer.add_key_value(field.name, field.contents(), main, field.types[-1] if len(field.types) > 1 else None)
    expected = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if len(shape) < 2:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        data = random_blocks(generator, kind, shape[0], shape[1] // block, size)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        expected[tensor.name] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".k.gguf"), expected


def random_blocks(generator, kind, rows, count, size):
    """Rows of blocks of random bits whose values are those of weights: below 1000."""
    data = generator.integers(0, 256, (rows, count, size), dtype=np.uint8)
    while True:
        with np.errstate(all="ignore"):
            values = gguf.dequantize(data.reshape(rows, -1), kind).reshape(rows, count, -1)
        bad = ~(np.abs(values) < 1000).all(-1)
        if not bad.any():
            return data.reshape(rows, -1)
        data[bad] = generator.integers(0, 256, (int(bad.sum()), size), dtype=np.uint8)


@pytest.mark.parametrize("kind", [*K_QUANTS, *OTHERS])
def test_every_type_is_widened_as_the_package_does(kind, make_llama, make_gguf, tmp_path):
    folder = make_llama(tmp_path, **BIG, head_dim=64, num_key_value_heads=4)
    path, expected = rewritten(make_gguf(folder, tmp_path / "m.gguf"), gguf.GGMLQuantizationType[kind])
    checkpoint = Checkpoint.open(path, "relu")
    for name in ("embed", "layers.0.v", "layers.0.gate", "layers.0.down", "head"):
        tensor = checkpoint.tensors[f"{name}.weight"]
        found = torch.cat([b.clone() for b in checkpoint.blocks(f"{name}.weight", 37)])
        assert tensor.code == kind and found.dtype == torch.float32
        assert np.array_equal(found.numpy(), expected[tensor.name])


def test_a_mixture_says_what_becomes_of_it(make_llama, make_gguf, tmp_path):
    folder = make_llama(tmp_path, **BIG, head_dim=64, num_key_value_heads=4)
    plain = make_gguf(folder, tmp_path / "m.gguf")
    path, expected = rewritten(plain, gguf.GGMLQuantizationType.Q6_K)
    report = pack(path, tmp_path / "packed", activation="relu")
    assert report.weight_format == "q8_0"
    assert report.notes == ("100.0% of the weights, in q6_k, are made q8_0, as a model directory has one format",)
    assert "--format q8_0 would round less" in pack(path, tmp_path / "p4", "q4_0", activation="relu").notes[0]
    values = torch.from_numpy(expected["blk.0.attn_v.weight"])
    with ModelDirectory.open(tmp_path / "packed") as directory:
        found = directory.matrix("layers.0.v.weight").data
    assert torch.equal(found, encode(values, "q8_0"))


def test_a_type_that_cannot_be_widened_is_refused_by_name(make_llama, make_gguf, tmp_path):
    path = make_gguf(make_llama(tmp_path), tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "llama")
    for field in gguf.GGUFReader(path).fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in gguf.GGUFReader(path).tensors:
        data = np.zeros(tuple(reversed(tensor.shape.tolist())), np.int8) if len(tensor.shape) > 1 else tensor.data
        writer.add_tensor(tensor.name, np.array(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"token_embd.weight in i.gguf is stored as I8, which cannot be read"):
        Checkpoint.open(tmp_path / "i.gguf", "relu")
