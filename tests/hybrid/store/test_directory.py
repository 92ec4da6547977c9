"""ModelDirectory: tensors in place, row orders, verification, and everything that can be wrong with a folder."""

import gc
import os
import shutil
import warnings

import numpy as np
import psutil
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from hybrid.store.manifest import layer_file
from profiler.artifacts import UserError


@pytest.fixture
def copy(opt_directory, tmp_path):
    """A model directory to change."""
    return shutil.copytree(opt_directory, tmp_path / "copy")


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def test_tensors_are_those_of_the_checkpoint(opt_checkpoint, opt_directory):
    theirs = load_file(opt_checkpoint / "model.safetensors")
    with ModelDirectory.open(opt_directory) as directory:
        assert torch.equal(directory.matrix("embed.weight").data, theirs["model.decoder.embed_tokens.weight"])
        assert torch.equal(
            directory.dense("layers.1.q.bias"), theirs["model.decoder.layers.1.self_attn.q_proj.bias"].float()
        )
        layer = directory.layer(2)
        assert torch.equal(layer.part("up").data, theirs["model.decoder.layers.2.fc1.weight"])
        assert torch.equal(layer.part("down").data, theirs["model.decoder.layers.2.fc2.weight"].T)
        assert torch.equal(layer.bias, theirs["model.decoder.layers.2.fc1.bias"].float())
        assert layer.parts == ("up", "down")
        assert layer.rows.stride() == (directory.stride_bytes // 2, 1)
        assert not layer.rows[:, 2 * directory.spec.hidden_size :].any()
        assert np.array_equal(layer.neuron_ids, np.arange(157))
        positions = directory.matrix("positions.weight")
        assert torch.equal(positions.data, theirs["model.decoder.embed_positions.weight"])
        for read, name in (
            (directory.matrix, "head.weight"),
            (directory.dense, "head.weight"),
            (directory.dense, "embed.weight"),
            (directory.matrix, "final_norm.weight"),
            (directory.matrix, "layers.0.up.weight"),
        ):
            with pytest.raises(KeyError):
                read(name)


def test_tensors_lie_in_mapped_pages_of_the_file(llama_directory):
    with ModelDirectory.open(llama_directory) as directory:
        assert directory.mappings() == []
        rows, dense = directory.layer(1).rows, directory.matrix("layers.1.o.weight").data
        mappings = {path: (address, length) for address, length, path in directory.mappings()}
        assert set(mappings) == {str(llama_directory / n) for n in ("dense.safetensors", layer_file(1))}
        mapped = {m.path for m in psutil.Process().memory_maps(grouped=False)}
        for tensor, name in ((rows, layer_file(1)), (dense, "dense.safetensors")):
            address, length = mappings[str(llama_directory / name)]
            assert length == (llama_directory / name).stat().st_size
            assert address % os.sysconf("SC_PAGESIZE") == 0
            assert address <= tensor.data_ptr() < address + length
            assert str(llama_directory / name) in mapped
        assert rows.data_ptr() % 4096 == 0 and dense.data_ptr() % 64 == 0
        assert directory.layer(1).rows.data_ptr() == rows.data_ptr()


def test_mapping_warns_of_nothing(llama_directory):
    with warnings.catch_warnings(), ModelDirectory.open(llama_directory) as directory:
        warnings.simplefilter("error")
        directory.matrix("embed.weight")
        torch.from_numpy(directory.layer(0).neuron_ids)


def test_tensors_outlive_close_and_the_mapping_goes_with_the_last(llama_directory):
    directory = ModelDirectory.open(llama_directory)
    rows = directory.layer(0).rows
    expected = rows.clone()
    directory.close()
    assert directory.mappings() == []
    gc.collect()
    assert torch.equal(rows, expected)
    del rows
    gc.collect()
    assert str(llama_directory / layer_file(0)) not in {m.path for m in psutil.Process().memory_maps(grouped=False)}


def test_the_library_reads_the_files_unchanged(opt_directory):
    with ModelDirectory.open(opt_directory) as directory:
        loaded = load_file(opt_directory / layer_file(1))
        assert torch.equal(loaded["rows"], directory.layer(1).rows)
        with safetensors.safe_open(opt_directory / "dense.safetensors", "pt") as file:
            assert torch.equal(file.get_tensor("positions.weight"), directory.matrix("positions.weight").data)


def test_reordering_changes_rows_and_the_order_and_nothing_else(copy):
    files = ModelFiles.open_files(copy)
    before, order_before = files.pack_digest, files.row_order_digest()
    order = np.random.default_rng(1).permutation(157).astype(np.int32)
    with ModelDirectory.open(copy) as old:
        expected, bias = old.layer(1).rows.clone(), old.layer(1).bias.clone()
        files.reorder_layer(1, order)
        assert torch.equal(old.layer(1).rows, expected), "a reader of the old file is not disturbed"
        assert old.row_order_digest() == order_before
        with ModelDirectory.open(copy) as new:
            assert torch.equal(new.layer(1).rows, expected[torch.from_numpy(order).long()])
            assert torch.equal(new.layer(1).bias, bias[torch.from_numpy(order).long()])
            assert np.array_equal(new.neuron_ids(1), order)
            assert np.array_equal(new.row_orders(), [new.layer(i).neuron_ids for i in range(new.spec.n_layers)])
            assert np.array_equal(new.row_orders(), files.row_orders())
            assert new.pack_digest == before
            assert new.row_order_digest() == files.row_order_digest() != order_before
            new.verify()


def test_names_of_what_later_stages_write(copy):
    files = ModelFiles.open_files(copy)
    assert files.profile_path("default") == copy / "profiles" / "default.safetensors"
    assert files.predictors_path("a.b-c") == copy / "predictors" / "a.b-c.safetensors"
    assert files.plan_path("8GiB") == copy / "plans" / "8GiB.json"
    assert not (files.has_profile("default") or files.has_predictors("default") or files.has_plan("default"))
    files.plan_path("b").write_text("{}")
    files.plan_path("a").write_text("{}")
    (copy / "plans" / ".c.json").write_text("{}")
    assert files.has_plan("a") and files.added_names("plans") == ["a", "b"]
    for name in ("", "..", "../x", "a/b", "a\0", ".hidden", "x" * 200):
        with pytest.raises(UserError, match="is no name"):
            files.plan_path(name)


@pytest.mark.parametrize("name", ["dense.safetensors", layer_file(1), "vocab.json", "source_config.json"])
def test_a_missing_file_or_another_size_is_noticed_on_opening(copy, name):
    for change, message in ((lambda p: os.truncate(p, p.stat().st_size + 1), "damaged"), (os.unlink, "missing")):
        change(copy / name)
        with pytest.raises(UserError, match=f"{name}.*{message}.*pack again"):
            ModelDirectory.open(copy)


def test_a_changed_header_is_noticed_on_mapping(copy):
    flip(copy / "dense.safetensors", 40)
    flip(copy / layer_file(0), 8)
    with ModelDirectory.open(copy) as directory:
        for read in (lambda: directory.matrix("embed.weight"), lambda: directory.layer(0)):
            with pytest.raises(UserError, match=r"damaged.*pack again"):
                read()
        directory.layer(1)


def test_ids_that_are_no_permutation_are_noticed_on_mapping(copy):
    files = ModelFiles.open_files(copy)
    flip(copy / layer_file(0), files.manifest.layouts[layer_file(0)].entry("neuron_ids").offset)
    with ModelDirectory.open(copy) as directory, pytest.raises(UserError, match=r"00\.safetensors is damaged"):
        directory.layer(0)


def test_verify_reads_everything_and_tells_its_progress(llama_directory):
    told = []
    ModelFiles.open_files(llama_directory).verify(lambda done, total: told.append((done, total)))
    beside = ("model.json", "origin.json")
    total = sum(p.stat().st_size for p in llama_directory.rglob("*") if p.is_file() and p.name not in beside)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_verify_names_the_file_with_a_flipped_bit(copy):
    files = ModelFiles.open_files(copy)
    dense, layer = files.manifest.layouts["dense.safetensors"], files.manifest.layouts[layer_file(1)]
    places = [
        ("dense.safetensors", 100),
        ("dense.safetensors", len(dense.header) - 1),
        ("dense.safetensors", dense.size - 1),
        (layer_file(1), 20),
        (layer_file(1), layer.entry("rows").offset),
        (layer_file(1), layer.entry("rows").end - 1),
        (layer_file(1), layer.entry("neuron_ids").offset + 4),
        (layer_file(1), layer.entry("neuron_ids").end),
        (layer_file(1), layer.entry("bias").end - 1),
        ("merges.txt", 30),
        ("source_config.json", 5),
    ]
    for name, at in places:
        flip(copy / name, at)
        with pytest.raises(UserError, match=f"{name}.*pack again"):
            files.verify()
        flip(copy / name, at)
        files.verify()


@pytest.mark.parametrize("change", [-4096, 4096])
def test_a_mapped_file_that_changes_its_size_is_noticed(copy, change):
    with ModelDirectory.open(copy) as directory:
        directory.layer(1)
        directory.check_unchanged()
        path = copy / layer_file(1)
        os.truncate(path, path.stat().st_size + change)
        with pytest.raises(UserError, match=r"01\.safetensors was changed while it was in use"):
            directory.check_unchanged()


def test_what_is_no_model_directory(llama_checkpoint, tmp_path):
    cases = {
        tmp_path / "none": "not a folder",
        tmp_path: r"has no model\.json",
        llama_checkpoint: "pack it: hybrid pack",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            ModelDirectory.open(path)
