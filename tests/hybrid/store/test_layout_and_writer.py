"""Files of the store are safetensors files: aligned, and read unchanged by the library."""

import hashlib

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hybrid.spec import ModelSpec
from hybrid.store.layout import ALIGNMENT, ITEM_BYTES, PADDING, PAGE, dense_layout, lay_out, layer_layout, least_stride
from hybrid.store.writer import StreamingWriter
from profiler.artifacts import UserError

NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32, "U8": np.uint8}

tensors = st.lists(
    st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(1, 9), min_size=1, max_size=3)),
    min_size=1,
    max_size=6,
)


def random_values(code, shape, seed):
    raw = np.random.default_rng(seed).integers(0, 120, (*shape, ITEM_BYTES[code]), dtype=np.uint8)
    return raw.view(NUMPY[code]).reshape(shape)


@settings(deadline=None, max_examples=60)
@given(tensors, st.integers(1, 5))
def test_the_library_reads_what_was_written_in_pieces(tmp_path_factory, drawn, pieces):
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    named = [(f"t{k}", code, tuple(shape)) for k, (code, shape) in enumerate(drawn)]
    layout = lay_out(named, "test")
    values = {name: random_values(code, shape, k) for k, (name, code, shape) in enumerate(named)}
    shown = hashlib.sha256()
    with path.open("wb") as file:
        writer = StreamingWriter(file, layout, shown.update)
        for name, array in values.items():
            for piece in np.array_split(array, pieces):
                writer.write(name, piece)
        writer.finish()
    assert hashlib.sha256(path.read_bytes()).digest() == shown.digest()
    assert path.stat().st_size == layout.size

    assert len(layout.header) % PAGE == 0
    assert all(e.offset % ALIGNMENT == 0 for e in layout.entries if not e.name.startswith(PADDING))
    loaded = load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "kind": "hybrid test"}
        for name, array in values.items():
            entry = layout.entry(name)
            for found in (loaded[name], file.get_tensor(name)):
                assert tuple(found.shape) == array.shape
                assert found.contiguous().view(torch.uint8).numpy().tobytes() == array.tobytes()
            assert path.read_bytes()[entry.offset : entry.end] == array.tobytes()
    assert set(loaded) - set(values) == {e.name for e in layout.entries if e.name.startswith(PADDING)}
    assert not any(loaded[name].any() for name in set(loaded) - set(values))


def test_aligned_tensors_need_no_padding():
    layout = lay_out([("a", "BF16", (32, 3)), ("b", "F32", (16,)), ("c", "U8", (7,))], "test")
    assert [e.name for e in layout.entries] == ["a", "b", "c"]


@pytest.mark.parametrize("write", ["wrong order", "too much", "too little"])
def test_a_wrong_write_fails_at_once(tmp_path, write):
    layout = lay_out([("a", "F32", (5,)), ("b", "F32", (5,))], "test")
    with (tmp_path / "x").open("wb") as file, pytest.raises(AssertionError):
        writer = StreamingWriter(file, layout)
        if write == "wrong order":
            writer.write("b", np.zeros(5, np.float32))
        elif write == "too much":
            writer.write("a", np.zeros(6, np.float32))
        else:
            writer.write("a", np.zeros(5, np.float32))
            writer.finish()


def spec(**options):
    sizes = {"vocab_size": 11, "hidden_size": 5, "n_layers": 2, "n_neurons": 7, "n_heads": 1, "n_kv_heads": 1}
    gated = {"activation": "relu", "gated": True, "norm": "rms", "norm_eps": 0.0, "positions": "learned"}
    return ModelSpec(family="x", max_positions=9, **{"head_dim": 4, **sizes, **gated, **options})


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.booleans(), st.sampled_from([("bf16", 1, 2), ("q8_0", 32, 34), ("q4_0", 32, 18)]))
def test_a_row_holds_a_neuron_and_less_than_64_bytes_more(count, gated, blocks):
    weight_format, block, block_bytes = blocks
    model = spec(hidden_size=count * block, gated=gated)
    record = (3 if gated else 2) * count * block_bytes
    assert 0 <= least_stride(model, weight_format) - record < 64
    assert least_stride(model, weight_format) % 64 == 0


def test_a_neuron_file_has_rows_ids_and_biases_where_the_ffn_has_them():
    plain, biased = layer_layout(spec(), "f16", 64), layer_layout(spec(gated=False, ffn_bias=True), "bf16", 64)
    assert [(e.name, e.code, e.shape) for e in plain.entries] == [("rows", "F16", (7, 32)), ("neuron_ids", "I32", (7,))]
    assert plain.entry("rows").offset == PAGE
    assert [e.name for e in biased.entries if not e.name.startswith(PADDING)] == ["rows", "neuron_ids", "bias"]
    assert biased.entry("bias").code == "F32"


def test_vectors_are_fp32_and_matrices_in_the_weight_format():
    codes = {e.name: e.code for e in dense_layout(spec(norm="layer", attention_bias=True), "f16").entries}
    assert codes["layers.0.q.weight"] == codes["embed.weight"] == codes["positions.weight"] == "F16"
    assert codes["layers.0.q.bias"] == codes["final_norm.bias"] == codes["layers.1.attn_norm.weight"] == "F32"
    assert not any("gate" in name or "up" in name for name in codes)


def test_quantised_matrices_are_bytes_and_positions_stay_16_bit():
    sizes = {"hidden_size": 64, "n_heads": 3, "n_kv_heads": 1, "head_dim": 32}
    entries = {e.name: (e.code, e.shape) for e in dense_layout(spec(norm="layer", **sizes), "q4_0").entries}
    assert entries["embed.weight"] == ("U8", (11, 36))
    assert entries["layers.0.k.weight"] == ("U8", (32, 36))
    assert entries["layers.1.o.weight"] == ("U8", (64, 54))
    assert entries["positions.weight"] == ("F16", (9, 64))
    assert entries["final_norm.bias"] == ("F32", (64,))
    layer = layer_layout(spec(**sizes), "q8_0", 256)
    assert [(e.name, e.code, e.shape) for e in layer.entries] == [("rows", "U8", (7, 256)), ("neuron_ids", "I32", (7,))]


@pytest.mark.parametrize("sizes", [{"hidden_size": 60, "n_heads": 8}, {"hidden_size": 64, "n_heads": 3}])
def test_matrices_that_are_no_whole_blocks_have_no_layout(sizes):
    with pytest.raises(UserError, match="stores blocks of 32 weights"):
        dense_layout(spec(head_dim=4, **sizes), "q8_0")
