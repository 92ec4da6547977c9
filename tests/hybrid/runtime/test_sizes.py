"""What placement is told of a model's bytes, against the bytes of its files."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.ops import cpu
from hybrid.ops.limits import NATIVE_TOKENS, DownCut
from hybrid.runtime.sizes import BUFFER_SHARE, model_sizes, step_bytes, step_share
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from hybrid.store.layout import PADDING
from hybrid.store.manifest import DENSE_FILE, layer_file
from profiler.matrix import WEIGHT_FORMATS

FAMILIES = {
    "llama": {"hidden_size": 96, "head_dim": 16},
    "tied llama": {"hidden_size": 96, "head_dim": 16, "tie_word_embeddings": True},
    "opt": {},
    "arcee": {"head_dim": 24},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "nemotron": {"mlp_bias": True, "partial_rotary_factor": 0.5},
    "falcon": {"num_ln_in_parallel_attn": 1, "bias": True},
}


def test_the_operators_that_widen_nothing_are_those_for_a_few_tokens():
    assert NATIVE_TOKENS == cpu.MAX_TOKENS


@given(
    st.sampled_from(WEIGHT_FORMATS),
    st.integers(1, 1 << 10).map(lambda blocks: 32 * blocks),
    st.integers(1, 1 << 16),
    st.integers(1, 1 << 16),
)
def test_a_bank_of_few_rows_leaves_no_more_than_one_of_all(weight_format, hidden, one, other):
    """So that what a step holds for a layer's rows is bounded by what it would hold for them in a single bank."""
    few, all_rows = (DownCut.of(weight_format, hidden, rows) for rows in sorted((one, other)))
    assert few.chunks <= all_rows.chunks
    assert few.chunks * few.room <= max(one, other) + 16 * all_rows.chunks
    assert (few.blocks, few.width) == (all_rows.blocks, all_rows.width)


def test_a_step_is_counted_where_a_budget_is_worth_it(make_llama, tmp_path):
    pack(make_llama(tmp_path, hidden_size=64, num_attention_heads=4), tmp_path / "model")
    with ModelDirectory.open(tmp_path / "model") as directory:
        spec, size = directory.spec, step_bytes(directory.spec, "bf16", 64)
        least = int(size / BUFFER_SHARE)
        assert (step_share(spec, "bf16", 64, least + 4), step_share(spec, "bf16", 64, least - 4)) == (size, 0)
        assert size < step_bytes(spec, "bf16", 256) < step_bytes(replace(spec, hidden_size=128), "bf16", 256)
        buffers = [model_sizes(directory, None, 64, vram, "f16").buffer_bytes for vram in (1 << 20, 1 << 30)]
        assert buffers[1] - size >= buffers[0] > 0


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_files(make_family, make_opt, tmp_path, family, weight_format):
    if family == "opt":
        path = make_opt(tmp_path, hidden_size=64, word_embed_proj_dim=64)
    else:
        options = {"hidden_size": 64, "num_attention_heads": 4, **FAMILIES[family]}
        path = make_family(family.removeprefix("tied "), tmp_path, **options)
    pack(path, tmp_path / "model", weight_format)
    with ModelDirectory.open(tmp_path / "model") as directory:
        sizes = model_sizes(directory, None, context=64, vram=1 << 20, kv_format="f16")
        dense = [e for e in directory.manifest.layouts[DENSE_FILE].entries if not e.name.startswith(PADDING)]
        layer = directory.manifest.layouts[layer_file(0)]

        def stored(*starts):
            return sum(e.nbytes for e in dense if e.name.startswith(starts))

        assert sizes.attention_bytes == tuple(stored(f"layers.{i}.") for i in range(directory.spec.n_layers))
        assert sizes.embeddings_bytes == stored("embed.")
        assert sizes.positions_bytes == stored("positions.")
        assert sizes.head_bytes == stored("head.")
        assert sizes.final_norm_bytes == stored("final_norm.")
        assert sizes.n_rows * sizes.row_bytes == layer.entry("rows").nbytes
        biases = sum(e.nbytes for e in layer.entries if e.name == "bias")
        assert sizes.n_rows * sizes.row_extra_bytes == biases
