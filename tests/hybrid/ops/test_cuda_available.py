"""Which devices the device operators serve, and their scratch memory."""

import pytest
import torch

from hybrid.ops import cuda
from hybrid.ops.scratch import Scratch

CPU = torch.device("cpu")


def test_the_interpreter_serves_the_cpu_and_nothing_else(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cuda.available(CPU)
    assert not cuda.available(torch.device("cuda"))
    assert not cuda.available(torch.device("meta"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not cuda.available(CPU)


def test_without_triton_no_device_is_served(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not cuda.available(CPU)


def test_a_device_that_torch_does_not_see_is_not_served(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not cuda.available(torch.device("cuda"))


@pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_what_triton_does_not_compile_for_is_not_served(monkeypatch, capability, served):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert cuda.available(torch.device("cuda")) == served
    monkeypatch.setattr(torch.version, "cuda", None)  # a build for AMD's devices calls them the same
    assert not cuda.available(torch.device("cuda"))


def test_scratch_keeps_memory_for_the_largest_buffer_of_a_name():
    scratch = Scratch(CPU)
    a = scratch.get("a", (2, 3), torch.float32)
    assert a.shape == (2, 3) and a.is_contiguous() and a.dtype == torch.float32
    assert scratch.get("a", (2, 3), torch.float32).data_ptr() == a.data_ptr()
    assert scratch.get("a", (3,), torch.int64).data_ptr() == a.data_ptr()
    assert scratch.get("b", (5,), torch.uint8).dtype == torch.uint8
    assert scratch.bytes == 24 + 5
    assert scratch.get("a", (7,), torch.float32).shape == (7,)
    assert scratch.bytes == 28 + 5


def test_frozen_scratch_gives_only_what_is_there():
    scratch = Scratch(CPU)
    a = scratch.get("a", (2, 3), torch.float32)
    scratch.freeze()
    assert scratch.get("a", (3, 2), torch.float32).data_ptr() == a.data_ptr()
    with pytest.raises(RuntimeError, match=r"frozen and have no 'a' of torch\.float32"):
        scratch.get("a", (3, 3), torch.float32)
    with pytest.raises(RuntimeError, match="frozen and have no 'b'"):
        scratch.get("b", (2, 3), torch.float32)
