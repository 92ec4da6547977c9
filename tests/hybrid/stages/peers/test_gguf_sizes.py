"""Bytes of a GGUF file's layers, and how many of them fit a budget."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.stages.peers.gguf_sizes import GgufSizes, read_gguf_sizes
from profiler.artifacts import UserError

TENSORS = {
    "token_embd.weight": (40, 8),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.ffn_up.weight": (16, 8),
    "blk.0.ffn_norm.weight": (8,),
    "blk.1.attn_q.weight": (8, 8),
    "blk.1.ffn_up.weight": (24, 8),
    "output_norm.weight": (8,),
    "output.weight": (40, 8),
}


@pytest.fixture
def write(tmp_path):
    def make(names):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        for name in names:
            writer.add_tensor(name, np.ones(TENSORS[name], np.float16 if len(TENSORS[name]) > 1 else np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return make


def test_sizes_are_those_of_the_tensors(write):
    sizes = read_gguf_sizes(write(TENSORS))
    assert sizes.layers == (2 * (64 + 128) + 32, 2 * (64 + 192))
    assert sizes.ffn == (2 * 128, 2 * 192)
    assert sizes.head == 2 * 320 + 32
    assert sizes.total == sum(sizes.layers) + sizes.head + 2 * 320
    assert sizes.without_ffn(kv_bytes=10) == 2 * 2 * 64 + 32 + sizes.head + 20


def test_a_tied_head_is_the_embeddings(write):
    assert read_gguf_sizes(write([name for name in TENSORS if name != "output.weight"])).head == 2 * 320 + 32


def test_what_is_no_model_is_refused(write, tmp_path):
    with pytest.raises(UserError, match="holds no layers"):
        read_gguf_sizes(write(["token_embd.weight"]))
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUX" * 100)
    with pytest.raises(UserError, match="is not a GGUF file"):
        read_gguf_sizes(other)
    with pytest.raises(UserError, match=r"cannot read .*none\.gguf"):
        read_gguf_sizes(tmp_path / "none.gguf")


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=9), st.integers(0, 200), st.integers(0, 9), st.integers(0, 999)
)
def test_one_layer_more_would_not_fit(layers, head, kv_bytes, budget):
    sizes = GgufSizes(sum(layers) + head, tuple(layers), tuple(layers), head)
    count = sizes.layers_within(budget, kv_bytes)
    assert sizes.on_gpu(count, kv_bytes) <= budget
    if count <= len(layers):
        assert sizes.on_gpu(count + 1, kv_bytes) > budget
    last = [layer + kv_bytes for layer in layers[len(layers) - count :]]
    assert sizes.on_gpu(count, kv_bytes) >= sum(last), "all that older versions put there"
    if count:
        assert sizes.on_gpu(count, kv_bytes) >= head + sum(last[1:]), "and what newer ones do"
