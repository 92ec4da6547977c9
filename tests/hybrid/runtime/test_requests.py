"""Rows that are asked for when they are named: the same bits, only where a model is larger than memory."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from hybrid.runtime import loader
from hybrid.stages.opening import open_engine


@pytest.fixture
def larger(monkeypatch):
    """Models count as larger than memory."""
    monkeypatch.setattr(loader, "larger_than_memory", lambda directory, options: True)


def found_by(engine, heldout, complete):
    ids = engine.tokenizer.encode(heldout)[:60]
    prompts = [ids[at : at + 9] for at in range(engine.options.max_sequences)]
    return engine.logits(ids), engine.logits(ids[:8], one_by_one=True), complete(engine, prompts, 5)


def asked(engine):
    return "requests" in {kind for kind, seconds in engine.machine.recorded.seconds().items() if seconds}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_bits_are_the_same(demo, look_ahead, split_plan, heldout, complete, larger, split, ahead):
    where = {"plan": split_plan, "device": "cpu"} if split else {}
    found = []
    for prefetch in (True, False):
        options = {"kv_format": "f32", "max_sequences": 1 if split else 5, "context": 256, "prefetch": prefetch}
        with open_engine(look_ahead if ahead else demo, mode="predicted", **where, **options) as engine:
            found.append(found_by(engine, heldout, complete))
            assert engine.machine.scheduler.prefetch == prefetch
            assert asked(engine) == prefetch or split  # there the host's programs ask
    (texts, singles, completions), (plain, plain_singles, plain_completions) = found
    assert torch.equal(texts, plain)
    assert torch.equal(singles, plain_singles)
    assert completions == plain_completions


def read_alone(engine):
    """Whether neurons' files are mapped so that pages are read without their neighbours."""
    return advised(engine, "rr")


def advised(engine, flag):
    """Whether the kernel was advised so of neurons' mappings: all of them, or none. See proc(5), smaps."""
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = f"{engine.directory.path}/neurons" in line
        elif line.startswith("VmFlags") and inside:
            flags.append(flag in line.split())
    assert flags
    assert all(flags) or not any(flags)
    return flags[0]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
def test_only_a_model_larger_than_memory_is_read_so(look_ahead, monkeypatch):
    def opened(free=None, **options):
        with monkeypatch.context() as patch:
            if free is not None:
                patch.setattr(loader, "available_memory", lambda: free)
            with open_engine(look_ahead, **{"mode": "predicted", **options}) as engine:
                engine.logits([5, 6, 7])
                return engine.machine.scheduler.prefetch, read_alone(engine), asked(engine)

    assert opened() == (False, False, False)
    assert opened(free=1 << 20) == (True, True, True)
    assert opened(free=1 << 20, prefetch=False) == (False, False, False)
    assert opened(free=1 << 20, mode="exact") == (False, False, False)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages")
def test_only_a_model_that_fits_in_memory_is_mapped_in_large_pieces(look_ahead, monkeypatch):
    for mode in ("predicted", "exact"):
        with open_engine(look_ahead, mode=mode) as engine:
            engine.logits([5, 6, 7])
            assert advised(engine, "hg")
        with monkeypatch.context() as patch:
            patch.setattr(loader, "available_memory", lambda: 1 << 20)
            with open_engine(look_ahead, mode=mode) as engine:
                engine.logits([5, 6, 7])
                assert not advised(engine, "hg")


def test_a_child_of_a_fork_goes_on(look_ahead, larger, complete):
    with open_engine(look_ahead, mode="predicted") as engine:
        expected = complete(engine, [[5, 6, 7]], 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
            child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int(complete(engine, [[5, 6, 7]], 4) != expected)
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
