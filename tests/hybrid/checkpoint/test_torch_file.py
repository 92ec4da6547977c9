"""`.bin` files of others: tensors only, mapped; code, foreign objects and other formats refused."""

import os
import pickle
import zipfile

import pytest
import torch

from hybrid.checkpoint.torch_file import open_torch_file
from profiler.artifacts import UserError


class Attack:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def read(tensor, rows):
    return torch.cat(list(tensor.blocks(rows)))


@pytest.mark.parametrize("rows", [1, 3, 600, 10_000])
def test_blocks_give_the_values_that_were_saved(tmp_path, rows):
    matrix = torch.randn(600, 40)
    values = {
        "plain": matrix,
        "bf16": matrix.to(torch.bfloat16),
        "transposed": matrix.T,
        "shares": matrix[5:9],
        "parameter": torch.nn.Parameter(torch.randn(5)),
        "again": matrix,
    }
    torch.save(values, tmp_path / "x.bin")
    found = {t.name: t for t in open_torch_file(tmp_path / "x.bin")}
    assert {name: t.code for name, t in found.items()} == {n: "BF16" if n == "bf16" else "F32" for n in values}
    for _ in range(2):  # pages given back after the first reading are read again
        for name, expected in values.items():
            assert found[name].shape == tuple(expected.shape)
            assert torch.equal(read(found[name], rows), expected.detach())


def test_code_is_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Attack(tmp_path / "ran")}, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"more than tensors.*save_pretrained"):
        open_torch_file(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [torch.ones(3), [torch.ones(3)], {"a": 1}, {"state_dict": {"a": torch.ones(2)}}, {1: torch.ones(2)}],
    ids=["tensor", "list", "number", "nested", "numeric name"],
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match="holds"):
        open_torch_file(tmp_path / "x.bin")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="holds"):
        open_torch_file(tmp_path / "x.bin")


def test_quantised_types_are_refused_when_used(tmp_path):
    torch.save({"a": torch.ones(3, dtype=torch.int8)}, tmp_path / "x.bin")
    (tensor,) = open_torch_file(tmp_path / "x.bin")
    with pytest.raises(UserError, match="stored as int8"):
        _ = tensor.dtype


def test_the_format_before_torch_1_6_is_refused_with_a_way_out(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"older than torch 1\.6.*save_pretrained"):
        open_torch_file(tmp_path / "x.bin")


def test_plain_pickles_and_noise_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    for content in (b"", b"noise" * 100, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(UserError, match="truncated"):
            open_torch_file(path)


def test_every_cut_is_noticed(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "cut.bin").write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_torch_file(tmp_path / "cut.bin")


def test_compressed_archives_are_refused_unread(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as plain, zipfile.ZipFile(tmp_path / "bomb.bin", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry) + bytes(1 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        open_torch_file(tmp_path / "bomb.bin")


def test_a_storage_larger_than_the_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as plain, zipfile.ZipFile(tmp_path / "big.bin", "w") as big:
        for entry in plain.infolist():
            content = plain.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"K\n", b"J\xff\xff\xff\x7f")  # the count 10 becomes 2**31 - 1
            big.writestr(entry.filename, content)
    with pytest.raises(UserError):
        open_torch_file(tmp_path / "big.bin")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(UserError, match="is not a file"):
        open_torch_file(tmp_path / "x.bin")
