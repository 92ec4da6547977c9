"""What is made of CUDA's figures, on a card that is made up: torch's functions answer for it."""

from types import SimpleNamespace

import pytest
import torch

from hybrid.runtime import cuda_memory as file
from hybrid.runtime.cuda_memory import GROWTH, ROUNDING, CudaMemory, cuda_memory, device_memory
from hybrid.runtime.vram import HostMemory, allowance, context_cost
from profiler.artifacts import UserError
from profiler.hardware import NOMINAL_CONTEXT

MIB = 1 << 20
TOTAL, OTHERS, CONTEXT, WORKSPACE = 8192 * MIB, 1000 * MIB, 300 * MIB, 20 * MIB


class Card:
    """A GPU of 8 GiB of which others have a part. A context takes CONTEXT, and with it WORKSPACE of the allocator."""

    def __init__(self, monkeypatch, told=True, used_before=False):
        self.others, self.context, self.reserved, self.share = OTHERS, 0, 0, 1.0
        self.told, self.number = told, 0  # the number that the driver has for another process
        for name in ("is_available", "is_initialized", "memory_reserved", "mem_get_info", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.limit)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12"))
        monkeypatch.setattr(file, "warm_up", self.warm_up)
        monkeypatch.setattr(file, "free_vram", lambda: self.free if told else None)
        monkeypatch.setattr(file, "open_nvml", self.open_nvml)
        if used_before:
            self.context, self.reserved = CONTEXT, 100 * MIB

    @property
    def taken(self):
        return self.context + self.reserved

    @property
    def free(self):
        return TOTAL - self.others - self.taken

    def is_available(self):
        return True

    def is_initialized(self):
        return self.context > 0

    def warm_up(self):
        if not self.context:
            self.context, self.reserved = CONTEXT, WORKSPACE

    def memory_reserved(self, device):
        return self.reserved

    def mem_get_info(self, device):
        return self.free, TOTAL

    def empty_cache(self):
        pass

    def limit(self, share, device):
        self.share = share

    def open_nvml(self, device):
        assert device == "GPU-12"
        return SimpleNamespace(process=lambda number: self.number or self.taken) if self.told else None


@pytest.mark.parametrize("told", [True, False])
def test_the_context_is_what_the_driver_counts_or_what_is_less_free(monkeypatch, told):
    card = Card(monkeypatch, told)
    if not told:
        monkeypatch.setattr(file, "free_vram", lambda: card.free)
    memory = CudaMemory()
    assert memory.total() == TOTAL
    assert memory.free() == TOTAL - OTHERS - CONTEXT - WORKSPACE
    assert memory.context() == CONTEXT + WORKSPACE, "the workspace of products is a part of being there"
    card.reserved += 500 * MIB
    assert memory.process() == CONTEXT + WORKSPACE + 500 * MIB
    assert memory.context() == CONTEXT + WORKSPACE
    card.context += 7 * MIB  # kernels are loaded
    assert memory.context() == CONTEXT + WORKSPACE + 7 * MIB
    assert context_cost(0, memory) == CONTEXT + WORKSPACE + 7 * MIB + GROWTH + ROUNDING


@pytest.mark.parametrize("number", [1, 10 * MIB, 2 * TOTAL])
def test_a_count_that_is_another_processs_is_not_believed(monkeypatch, number):
    card = Card(monkeypatch)
    memory = CudaMemory()
    card.number = number
    assert memory.process() == CONTEXT + WORKSPACE


def test_where_nobody_says_what_the_context_took_it_is_nominal(monkeypatch):
    Card(monkeypatch, told=False)
    memory = CudaMemory()
    assert context_cost(0, memory) == NOMINAL_CONTEXT + WORKSPACE


def test_what_used_the_device_before_is_not_the_context(monkeypatch):
    card = Card(monkeypatch, used_before=True)
    memory = CudaMemory()
    assert memory.context() == CONTEXT
    card.told = False
    assert CudaMemory().context() == NOMINAL_CONTEXT - GROWTH - ROUNDING, "and unknown, where the driver does not say"


def test_a_device_that_others_fill_leaves_something(monkeypatch):
    card = Card(monkeypatch, told=False)
    monkeypatch.setattr(file, "free_vram", lambda: card.free)
    memory = CudaMemory()
    card.others -= 600 * MIB  # another process ended: more is free than before there was a context
    assert memory.context() == WORKSPACE + 1


def test_the_allocators_limit_keeps_the_process_within_its_budget(monkeypatch):
    card = Card(monkeypatch)
    memory, budget = CudaMemory(), 2000 * MIB
    size = allowance(budget, context_cost(0, memory), memory)
    memory.allow(size)
    limit = card.share * TOTAL
    assert limit == pytest.approx(WORKSPACE + size)
    assert CONTEXT + GROWTH + limit == pytest.approx(budget), "with all that the driver may take later"
    memory.allow(-size)
    assert card.share == 1.0
    memory.allow(2 * TOTAL)
    assert card.share == 1.0, "there is no more than all"


def test_a_device_that_cannot_be_used_is_an_error_that_says_why(monkeypatch):
    Card(monkeypatch)

    def full():
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")

    cuda_memory.cache_clear()
    monkeypatch.setattr(file, "warm_up", full)
    with pytest.raises(UserError, match=r"cannot be used \(CUDA error: out of memory\); .*--vram 0") as caught:
        device_memory("cuda")
    assert "asynchronously" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no CUDA device here; name --second-device cpu"):
        device_memory(None)
    assert isinstance(device_memory("cpu"), HostMemory)
