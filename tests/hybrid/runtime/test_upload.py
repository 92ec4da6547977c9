"""Copies to a device chunk by chunk: nothing is lost on the way, and nothing stays behind."""

import gc
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hybrid.runtime import upload
from hybrid.runtime.unit import Unit
from hybrid.runtime.upload import Arena, InMemory, MappedTensor, Upload, file_mapping, flat
from profiler.artifacts import UserError
from profiler.matrix import Matrix

HOST = torch.device("cpu")


class Counted(InMemory):
    """A tensor that notes what is asked of it."""

    def __init__(self, tensor):
        super().__init__(tensor)
        self.asked = []

    def read(self, start, into):
        self.asked.append(("read", start, into.numel()))
        super().read(start, into)

    def forget(self, stop):
        self.asked.append(("forget", stop))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(upload, "CHUNK", 1000)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 4321])
def test_all_bytes_arrive_through_buffers_or_without(small_chunks, staged, size):
    heard, work = [], Upload(HOST, staged=staged)
    work.told = heard.append
    parts = [torch.randint(256, (n,), dtype=torch.uint8) for n in (size, 77, size)]
    copies = [torch.zeros_like(part) for part in parts]
    for part, copy in zip(parts, copies, strict=True):
        work.copy(InMemory(part), copy)
    work.close()
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))
    assert work.done == sum(part.numel() for part in parts)
    assert heard == sorted(heard) and heard[-1] == work.done


@pytest.mark.parametrize("staged", [True, False])
def test_each_chunk_is_forgotten_before_the_next_is_read(small_chunks, staged):
    source, work = Counted(torch.zeros(1250, dtype=torch.float16)), Upload(HOST, staged=staged)
    work.copy(source, torch.ones(1250, dtype=torch.float16))
    assert source.asked[:2] == [("read", 0, 1000), ("forget", 1000)]
    assert source.asked[2:] == [("read", 1000, 1000), ("forget", 2000), ("read", 2000, 500), ("forget", 2500)]


def test_two_buffers_take_turns_and_are_let_go(small_chunks):
    work = Upload(HOST, staged=True)
    work.copy(InMemory(torch.zeros(3500, dtype=torch.uint8)), torch.ones(3500, dtype=torch.uint8))
    assert [buffer.numel() for buffer in work._buffers] == [1000, 1000]
    work.close()
    assert work._buffers == []
    to = torch.ones(10)
    work.copy(InMemory(torch.zeros(10)), to)
    assert not to.any(), "and made again when they are needed"


def test_an_arena_cuts_aligned_pieces_until_it_is_full():
    arena = Arena(HOST, 1000)
    one, two = arena.take(10), arena.take(300)
    assert (two.data_ptr() - one.data_ptr(), two.numel()) == (256, 300)
    one.fill_(1), two.fill_(2)
    assert one.view(torch.int16).tolist() == [257] * 5
    assert arena.take(300) is None, "768 and 300 are more than 1000"
    assert arena.take(232).numel() == 232
    assert arena.take(1) is None
    assert arena.take(0) is None or arena.take(0).numel() == 0


def test_an_arena_gives_its_memory_back_whoever_still_has_pieces():
    arena = Arena(HOST, 1 << 20)
    piece = arena.take(100)
    arena.close()
    assert piece.untyped_storage().nbytes() == 0


@pytest.fixture
def device_unit(pretended_device):
    """`device_unit(budget, planned, **figures)`: a unit as a GPU is, with its memory in ordinary memory."""

    def make(budget, planned, **figures):
        memory = pretended_device(**figures)
        unit = Unit("gpu", HOST, None, in_place=False, budget=budget, memory=memory)
        unit.admit({"neurons": 0, "buffers": 0, "context": 0, **planned})
        return unit, memory

    return make


def test_what_is_placed_comes_from_one_piece_and_the_budget_is_the_allocators_limit(device_unit):
    planned = {"neurons": 4000, "buffers": 500, "context": 800}
    unit, memory = device_unit(10_000, planned, context=300, process=450, growth=30, rounding=40)
    assert unit.used == {"context": 800}
    assert memory.allowed == 10_000 - 800 + 40
    first, matrix = torch.randn(100), Matrix.of(torch.randn(20, 30).half())
    copies = unit.place(first, "neurons"), unit.place_matrix(matrix, "neurons").data
    assert torch.equal(copies[0], first) and torch.equal(copies[1], matrix.data)
    assert copies[0].untyped_storage().data_ptr() == copies[1].untyped_storage().data_ptr()
    assert unit.used["neurons"] == 400 + 1200
    memory.process_bytes = 450 + 1600
    use = unit.use(planned)
    assert (use.process, use.budget, use.total) == (1900, 10_000, memory.total_bytes), "150 were another's before"
    assert use.warnings == ()
    unit.close()
    assert copies[0].untyped_storage().nbytes() == 0
    assert (memory.allowed, memory.returned) == (0, 1)
    unit.close()
    assert memory.allowed == 0


def test_what_does_not_fit_the_piece_is_placed_beside_it(device_unit, monkeypatch):
    monkeypatch.setattr("hybrid.runtime.unit.ARENA_SLACK", 0)
    unit, _ = device_unit(10_000, {"neurons": 100})
    inside, beside = unit.place(torch.ones(25), "neurons"), unit.place(torch.ones(25), "kv")
    assert inside.untyped_storage().data_ptr() != beside.untyped_storage().data_ptr()
    assert beside.sum() == 25


def test_a_budget_that_is_the_processs_holds_less_of_a_model(device_unit):
    unit, _ = device_unit(1000, {"neurons": 600}, context=500)
    with pytest.raises(UserError, match=r"missing on the gpu for neurons: its budget of 1000 B holds 500 B"):
        unit.place(torch.zeros(600, dtype=torch.uint8), "neurons")


def test_an_allocator_that_has_no_more_is_explained(device_unit):
    unit, _ = device_unit(1 << 40, {}, free=7 << 20)

    class Full(InMemory):
        def read(self, start, into):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(UserError, match=r"no memory left for kv: .* and 7\.0 MiB are free; .*--vram") as caught:
        unit.place(torch.zeros(10), "kv", Full(torch.zeros(10)))
    assert "Tried" not in str(caught.value)


def test_a_tensor_that_another_library_mapped_is_dropped_from_its_file(tmp_path, in_page_cache):
    path = tmp_path.resolve() / "tensors.safetensors"
    tensors = {name: torch.randn(3 << 20) for name in ("first", "second")}
    save_file(tensors, path)
    with path.open("rb") as written:
        os.fsync(written.fileno())  # what is not on the drive yet is not dropped
    with safe_open(path, framework="pt") as file:
        mapped = {name: file.get_tensor(name) for name in tensors}
    for name, tensor in mapped.items():
        assert torch.equal(tensor, tensors[name])
    address, size = mapped["first"].data_ptr(), mapped["first"].nbytes
    assert file_mapping(address, size).path == path
    assert all(in_page_cache(address, size))
    copy = torch.empty_like(mapped["first"])
    Upload(HOST).copy(MappedTensor(mapped["first"]), copy)
    assert torch.equal(copy, tensors["first"])
    state, other = in_page_cache(address, size), mapped["second"]
    # Of what the kernel keeps together, up to 2 MiB, that at the end may be the next tensor's too.
    assert not any(state[512:-512])
    assert all(in_page_cache(other.data_ptr() + (2 << 20), other.nbytes - (4 << 20)))
    assert torch.equal(mapped["first"], tensors["first"]), "it is read again where it is touched"
    del mapped, other
    gc.collect()


def test_memory_that_is_no_files_is_only_copied():
    tensor = torch.arange(1 << 20)
    assert file_mapping(tensor.data_ptr(), tensor.nbytes) is None
    copy = torch.empty_like(tensor)
    Upload(HOST).copy(MappedTensor(tensor), copy)
    assert torch.equal(copy, torch.arange(1 << 20))
    assert torch.equal(tensor, copy), "nothing of it was dropped"


def test_mappings_are_found_as_the_system_lists_them(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "1000-3000 r--p 00002000 fe:00 77 /a model/with blanks.safetensors\n"
        "3000-5000 rw-p 00000000 00:00 0 \n"
        "7000-9000 rw-p 00000000 00:00 0 [heap]\n"
    )
    found = file_mapping(0x1800, 0x800, maps)
    assert (found.begin, found.offset, found.inode) == (0x1000, 0x2000, 77)
    assert found.path == Path("/a model/with blanks.safetensors")
    for address, length in ((0x2800, 0x900), (0x3000, 1), (0x7000, 1), (0x6000, 1), (0x800, 0x900)):
        assert file_mapping(address, length, maps) is None
    assert file_mapping(0x1000, 1, tmp_path / "none") is None
    found.drop(0x1000, 0x2000)  # of a file that is gone: nothing happens


def test_bytes_of_a_tensor_are_its_own():
    assert flat(torch.tensor([[1, 2]], dtype=torch.int16)).tolist() == [1, 0, 2, 0]
