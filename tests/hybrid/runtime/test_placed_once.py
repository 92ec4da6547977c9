"""What a plan puts on another device is not in host memory as well: in no page table, and not in the page cache."""

import mmap
import os
import sys
from pathlib import Path

import psutil
import pytest
import torch

from hybrid.runtime import upload
from hybrid.runtime.sizes import model_sizes
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import digests
from hybrid.store.directory import ModelDirectory
from hybrid.store.files import ModelFiles
from hybrid.store.manifest import DENSE_FILE, layer_file
from hybrid.store.stored import whole_pages
from placement.formulate import split_layer
from placement.plan import Budgets, Placement
from placement.planner import finish_plan
from profiler.hardware import read_hardware

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident of a mapping")

CONTEXT, LAYERS, NEURONS, HIDDEN = 64, 2, 6144, 512
FOLIO = 2 << 20  # bytes that the kernel keeps together in the page cache, and drops as a whole
SLACK = 12 << 20  # of what a process takes while a model is opened: threads, pages of keys and values, Python's own
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": CONTEXT,
}
CUT = 4096  # rows of each layer that are on the stand-in: two thirds


@pytest.fixture(scope="module")
def model(make_llama, tmp_path_factory):
    """A model whose layers take 18 MiB each, on the drive."""
    folder = tmp_path_factory.mktemp("large").resolve()
    path = pack(make_llama(folder, **SIZES), folder / "model").destination
    for name in [DENSE_FILE, *(layer_file(i) for i in range(LAYERS))]:
        with (path / name).open("rb") as file:
            os.fsync(file.fileno())
    return path


@pytest.fixture(scope="module")
def plan(model):
    """Dense, both layers split: the first rows, attention and head on the GPU, embeddings and the rest on the CPU."""
    files = ModelFiles.open_files(model)
    budgets = Budgets(vram=1 << 30, ram=None, context=CONTEXT)
    placement = Placement(
        mode="dense",
        sparse=False,
        budgets=budgets,
        n_rows=NEURONS,
        embeddings="cpu",
        head="gpu",
        layers=(split_layer(NEURONS, CUT, "gpu"),) * LAYERS,
    )
    return finish_plan(
        placement,
        name="split",
        digests=digests(files, files.row_orders(), None),
        sizes=model_sizes(files, None, CONTEXT, budgets.vram, "f16"),
        frequencies=None,
        hardware=read_hardware("cpu-stand-in"),
    )


def mapped_bytes(model):
    """Bytes of the model's files in this process's page tables."""
    maps = psutil.Process().memory_maps(grouped=False)
    return sum(m.rss for m in maps if Path(m.path).is_relative_to(model))


def private_bytes():
    """PSS of this process: its own pages, and its share of those that others have too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def forget_peak():
    """RSS now, from which the peak is counted again."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS:")


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def expected_logits(model, ids):
    with open_engine(model, mode="dense", context=CONTEXT) as engine:
        return engine.logits(ids)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_model_is_in_memory_once(model, plan, mmap, monkeypatch):
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    ids = list(range(3, 40))
    expected = expected_logits(model, ids)
    placed = sum(plan.bytes["gpu"].values())
    before, resident = private_bytes(), forget_peak()
    with open_engine(model, mode="dense", plan=plan, device="cpu", context=CONTEXT, mmap=mmap) as engine:
        peak = status("VmHWM:") - resident
        opened = private_bytes() - before
        on_host = plan.bytes["ram"]["neurons"] + plan.bytes["ram"]["embeddings"]
        assert placed > 2 * SLACK and on_host > SLACK // 2
        own = placed if mmap else placed + on_host
        assert opened < own + SLACK
        assert peak < own + SLACK, "and it was at no time"
        assert mapped_bytes(model) < SLACK // 8
        torch.testing.assert_close(engine.logits(ids), expected, rtol=1e-4, atol=1e-4)
        assert mapped_bytes(model) < (on_host + LAYERS * FOLIO if mmap else 1)


def test_pages_of_uploaded_rows_leave_the_page_cache_and_those_of_others_stay(model, plan, in_page_cache):
    with ModelDirectory.open(model) as other:  # maps nothing that it does not touch
        rows = [other.layer(i).rows for i in range(LAYERS)]
        head = other.matrix("head.weight").data
        for path in (DENSE_FILE, *(layer_file(i) for i in range(LAYERS))):
            (model / path).read_bytes()  # all of it is in the page cache
        assert all(all(in_page_cache(r.data_ptr(), r.nbytes)) for r in rows)
        with open_engine(model, mode="dense", plan=plan, device="cpu", context=CONTEXT):
            for view in rows:
                uploaded, rest = view[:CUT], view[CUT:]
                assert uploaded.nbytes > 3 * FOLIO
                assert not any(in_page_cache(uploaded.data_ptr(), uploaded.nbytes - FOLIO))
                assert all(in_page_cache(rest.data_ptr(), rest.nbytes))
            assert sum(in_page_cache(head.data_ptr(), head.nbytes)) * mmap.PAGESIZE <= 2 * FOLIO


def test_only_whole_pages_of_a_part_are_its_own():
    page = mmap.PAGESIZE
    assert whole_pages(1, page) == range(page, page)
    assert not whole_pages(page + 1, 10)
    assert whole_pages(0, 3 * page) == range(3 * page)
    assert whole_pages(page - 1, 2 * page + 2) == range(page, 3 * page)
