"""Neuron files: written in blocks, reordered without loss, their digest blind to the order and to nothing else."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.store import rows as rows_module
from hybrid.store.layout import PADDING, lay_out
from hybrid.store.rows import LayerFile, reorder_layer, write_layer
from profiler.artifacts import UserError

STRIDE = 64


def make(path, neurons, with_bias, seed=0):
    """Write a layer; returns its layout, rows, biases and digest."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (neurons, STRIDE), dtype=np.uint8)
    bias = rng.standard_normal(neurons).astype(np.float32) if with_bias else None
    tensors = [("rows", "BF16", (neurons, STRIDE // 2)), ("neuron_ids", "I32", (neurons,))]
    layout = lay_out([*tensors, *([("bias", "F32", (neurons,))] if with_bias else [])], "neurons")
    with path.open("wb") as file:
        digest = write_layer(file, layout, np.array_split(rows, 3), np.arange(neurons, dtype=np.int32), bias)
    return layout, rows, bias, digest


def read(path, layout):
    with LayerFile(path, layout) as layer:
        return np.concatenate(list(layer.rows())), layer.neuron_ids(), layer.bias(), layer.digest()


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 70), st.booleans(), st.integers(64, 1000))
def test_reordering_permutes_and_keeps_the_digest(tmp_path_factory, data, neurons, with_bias, block):
    path = tmp_path_factory.getbasetemp() / "layer.safetensors"
    layout, rows, bias, digest = make(path, neurons, with_bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", block)
        for _ in range(2):  # the second time from an order that is not the checkpoint's
            order = np.array(data.draw(st.permutations(range(neurons))), dtype=np.int32)
            reorder_layer(path, layout, order)
            found_rows, ids, found_bias, found_digest = read(path, layout)
            assert np.array_equal(ids, order)
            assert np.array_equal(found_rows, rows[order])
            assert (found_bias is None) == (bias is None)
            assert bias is None or np.array_equal(found_bias, bias[order])
            assert found_digest == digest


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [0, 1, 3], [-1, 0, 1], [0, 1, 2, 3]])
def test_what_is_no_permutation_is_refused_and_the_file_kept(tmp_path, order):
    path = tmp_path / "layer"
    layout, *_ = make(path, 3, False)
    before = path.read_bytes()
    with pytest.raises(UserError, match="does not name each of the layer's 3 neurons once"):
        reorder_layer(path, layout, np.array(order, dtype=np.int32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_who_has_the_old_file_open_keeps_it(tmp_path):
    path = tmp_path / "layer"
    layout, rows, _, _ = make(path, 9, False)
    with LayerFile(path, layout) as old:
        reorder_layer(path, layout, np.arange(9, dtype=np.int32)[::-1].copy())
        assert np.array_equal(np.concatenate(list(old.rows())), rows)
    assert np.array_equal(read(path, layout)[0], rows[::-1])


def test_an_order_that_is_there_already_is_not_written(tmp_path):
    path = tmp_path / "layer"
    layout, *_ = make(path, 9, True)
    before = path.stat().st_ino
    reorder_layer(path, layout, np.arange(9, dtype=np.int32))
    assert path.stat().st_ino == before


def test_free_space_is_asked_for_first(tmp_path, monkeypatch):
    path = tmp_path / "layer"
    layout, *_ = make(path, 9, True)
    monkeypatch.setattr("profiler.artifacts.free_bytes", lambda _: 10)
    with pytest.raises(UserError, match="reordering a layer needs"):
        reorder_layer(path, layout, np.arange(9, dtype=np.int32)[::-1].copy())


def test_every_flipped_bit_changes_the_digest_or_is_refused(tmp_path):
    path = tmp_path / "layer"
    layout, _, _, digest = make(path, 5, True)
    assert any(e.name.startswith(PADDING) for e in layout.entries)
    whole = path.read_bytes()
    offsets = [*range(0, 400, 3), *range(len(layout.header), len(whole))]
    for at in offsets:
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            found = read(path, layout)[3]
        except UserError:
            continue
        assert found != digest, f"byte {at}"


def test_neurons_that_swap_their_biases_change_the_digest(tmp_path):
    path = tmp_path / "layer"
    layout, rows, bias, digest = make(path, 5, True)
    with path.open("wb") as file:
        other = write_layer(file, layout, [rows], np.arange(5, dtype=np.int32), bias[[1, 0, 2, 3, 4]])
    assert other != digest


@pytest.mark.parametrize("size", [-1, 1])
def test_another_size_is_refused(tmp_path, size):
    path = tmp_path / "layer"
    layout, *_ = make(path, 5, False)
    os.truncate(path, layout.size + size)
    with pytest.raises(UserError, match=r"damaged.*pack again"):
        LayerFile(path, layout)


def test_a_file_cut_while_it_is_read_gives_an_error(tmp_path):
    path = tmp_path / "layer"
    layout, *_ = make(path, 5, False)
    with LayerFile(path, layout) as layer:
        os.truncate(path, layout.size // 2)
        with pytest.raises(UserError, match="ended before its time"):
            layer.digest()
