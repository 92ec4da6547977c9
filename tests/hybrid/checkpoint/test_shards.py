"""Weight files of a folder: one or many, links allowed; an index that lies is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from hybrid.checkpoint.shards import open_shards
from profiler.artifacts import UserError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def harmless(name):
    return name.endswith("inv_freq")


def make_index(folder, shards, weight_map=None):
    """Write shards {file: names} and an index over them."""
    for file, names in shards.items():
        save_file({name: torch.full((2, 2), float(len(name))) for name in names}, folder / file)
    weight_map = weight_map or {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_one_file(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(open_shards(tmp_path, harmless)) == ["a"]


def test_shards_by_index(tmp_path):
    found = open_shards(make_index(tmp_path, {ONE: ["a", "b"], TWO: ["c"]}), harmless)
    assert {name: tensor.shard.name for name, tensor in found.items()} == {"a": ONE, "b": ONE, "c": TWO}


@pytest.mark.parametrize("sharded", [False, True])
def test_torch_files(tmp_path, sharded):
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save({"a": torch.ones(2)}, tmp_path / name)
    if sharded:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert list(open_shards(tmp_path, harmless)) == ["a"]


def test_safetensors_go_before_torch_files(tmp_path):
    save_file({"good": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert list(open_shards(tmp_path, harmless)) == ["good"]


def test_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    make_index(blobs, {ONE: ["a"], TWO: ["b"]})
    for k, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / str(k))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(k), snapshot))
    assert set(open_shards(snapshot, harmless)) == {"a", "b"}


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"has no weights.*model\.safetensors"):
        open_shards(tmp_path, harmless)


def test_a_shard_that_is_missing_is_named(tmp_path):
    make_index(tmp_path, {ONE: ["a"], TWO: ["b"]})
    (tmp_path / TWO).unlink()
    with pytest.raises(UserError, match=f"{TWO} is missing"):
        open_shards(tmp_path, harmless)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "dangling link"])
def test_what_is_not_a_file_is_refused_and_not_opened(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(UserError, match=r"not a file|no weights"):
        open_shards(tmp_path, harmless)


def test_a_tensor_in_two_shards(tmp_path):
    make_index(tmp_path, {ONE: ["a", "b"], TWO: ["b", "c"]})
    with pytest.raises(UserError, match=f"b is in both {ONE} and {TWO}"):
        open_shards(tmp_path, harmless)


@pytest.mark.parametrize("wrong", [ONE, TWO])
def test_a_tensor_listed_but_not_there(tmp_path, wrong):
    make_index(tmp_path, {ONE: ["a"], TWO: ["b"]}, {"a": ONE, "b": TWO, "z": wrong})
    with pytest.raises(UserError, match=f"says that z is in {wrong}, and it is not"):
        open_shards(tmp_path, harmless)


def test_a_tensor_listed_in_another_shard_than_its_own(tmp_path):
    make_index(tmp_path, {ONE: ["a"], TWO: ["b"]}, {"a": TWO, "b": ONE})
    with pytest.raises(UserError, match="and it is not"):
        open_shards(tmp_path, harmless)


def test_a_tensor_there_but_not_listed(tmp_path):
    make_index(tmp_path, {ONE: ["a", "extra"]}, {"a": ONE})
    with pytest.raises(UserError, match=f"{ONE} holds extra"):
        open_shards(tmp_path, harmless)


def test_a_harmless_tensor_need_not_be_listed(tmp_path):
    make_index(tmp_path, {ONE: ["a", "x.inv_freq"]}, {"a": ONE})
    assert "a" in open_shards(tmp_path, harmless)


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../secret.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x.bin",
        "",
        "a\0.safetensors",
        "x" * 300 + ".safetensors",
        "\ud800.safetensors",
        5,
        None,
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path, shard):
    save_file({"a": torch.ones(2)}, tmp_path.parent / "secret.safetensors")
    make_index(tmp_path, {ONE: ["a"]}, {"a": shard})
    with pytest.raises(UserError, match=r"no .safetensors file of the same folder"):
        open_shards(tmp_path, harmless)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        open_shards(tmp_path, harmless)
