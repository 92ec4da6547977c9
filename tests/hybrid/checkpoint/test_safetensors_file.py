"""Safetensors files of others: read as the library reads them; damaged or hostile ones refused before allocation."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from hybrid.checkpoint.safetensors_file import open_safetensors
from profiler.artifacts import UserError


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def read(tensor, rows):
    return torch.cat([block.clone() for block in tensor.blocks(rows)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_blocks_give_the_values_that_the_library_wrote(tmp_path, dtype, rows):
    values = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3).to(dtype), "c": torch.randn(2, 3, 4).to(dtype)}
    save_file(values, tmp_path / "x.safetensors")
    found = {t.name: t for t in open_safetensors(tmp_path / "x.safetensors")}
    assert set(found) == set(values)
    for name, expected in values.items():
        assert found[name].dtype == dtype
        assert torch.equal(read(found[name], rows), expected)


def test_quantised_types_are_known_by_name_and_refused_when_used(tmp_path):
    save_file({"q": torch.ones(4, dtype=torch.int8)}, tmp_path / "x.safetensors")
    (tensor,) = open_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"q in x.safetensors is stored as I8.*16-bit original"):
        _ = tensor.dtype


HOSTILE = {
    "not an object": ([1], b""),
    "not JSON": (b"{nonsense", b""),
    "deep": (b"[" * 100_000 + b"]" * 100_000, b""),
    "key twice": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4)),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "hole": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "data beyond the tensors": ({"a": entry(0, 4)}, bytes(8)),
    "truncated": ({"a": entry(0, 400)}, bytes(8)),
    "enormous": ({"a": entry(0, 1 << 60, shape=[1 << 58])}, bytes(8)),
    "beyond 64 bit": ({"a": entry(0, 1 << 70, shape=[1 << 68])}, bytes(8)),
    "overflowing shape": ({"a": entry(0, 0, shape=[1 << 61, 1 << 61])}, b""),
    "end before begin": ({"a": entry(8, 4, shape=[1])}, bytes(8)),
    "negative offset": ({"a": entry(-4, 4, shape=[2])}, bytes(8)),
    "size and shape differ": ({"a": entry(0, 8, shape=[3])}, bytes(8)),
    "shape of floats": ({"a": entry(0, 8, shape=[2.0])}, bytes(8)),
    "shape of booleans": ({"a": entry(0, 4, shape=[True])}, bytes(4)),
    "shape of many dimensions": ({"a": entry(0, 4, shape=[1] * 1000)}, bytes(4)),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "dtype is a list": ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "entry is a number": ({"a": 5}, bytes(4)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, case):
    with pytest.raises(UserError, match=r"x\.safetensors is (damaged|truncated)"):
        open_safetensors(write(tmp_path / "x.safetensors", *HOSTILE[case]))


@pytest.mark.parametrize("content", [b"", b"1234567", (1 << 62).to_bytes(8, "little") + b"{}", b"\xff" * 8 + b"{}"])
def test_impossible_header_lengths_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a safetensors file, or is truncated"):
        open_safetensors(path)


def test_a_header_larger_than_any_model_needs_is_not_parsed(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((17 << 20).to_bytes(8, "little") + b"{" * (17 << 20))
    with pytest.raises(UserError, match="not a safetensors file"):
        open_safetensors(path)


def test_every_truncation_is_noticed(tmp_path):
    whole = save({"a": torch.randn(4, 4), "b": torch.randn(3)})
    path = tmp_path / "x.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_safetensors(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(64, 64)}, path)
    (tensor,) = open_safetensors(path)
    blocks = tensor.blocks(8)
    next(blocks)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(UserError, match="ended inside a"):
        list(blocks)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_changed_header_never_gives_another_error(tmp_path_factory, data):
    whole = bytearray(save({"a": torch.ones(4, 4), "b": torch.ones(3)}))
    length = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(whole)
    try:
        tensors = open_safetensors(path)
        for tensor in tensors:
            assert len(tensor.shape) == 0 or sum(len(block) for block in tensor.blocks(2)) == tensor.shape[0]
    except UserError:
        pass
