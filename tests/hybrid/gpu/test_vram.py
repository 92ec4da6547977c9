"""On a CUDA device: what the process takes is within its budget, by the driver's count, and is given back."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from hybrid.runtime import cuda_memory as cuda_memory_file
from hybrid.runtime.cuda_memory import CudaMemory, cuda_memory
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.runtime.sizes import model_sizes
from hybrid.runtime.summary import summarise
from hybrid.runtime.upload import CHUNK
from hybrid.runtime.vram import context_cost
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import digests
from hybrid.stages.plan import plan as write_plan
from hybrid.store.files import ModelFiles
from placement.formulate import split_layer
from placement.plan import Budgets, Placement
from placement.planner import finish_plan
from profiler.artifacts import UserError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

MIB, CONTEXT, LAYERS, NEURONS = 1 << 20, 128, 4, 8192
SLACK = 48 * MIB  # of host memory that a process takes meanwhile: threads, kernels that are compiled, pinned buffers
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": CONTEXT,
}
IDS = list(range(3, 90))


@pytest.fixture(scope="module")
def model(make_llama, tmp_path_factory):
    """A model whose layers take 48 MiB of neurons each."""
    folder = tmp_path_factory.mktemp("large").resolve()
    return pack(make_llama(folder, **SIZES), folder / "model").destination


@pytest.fixture
def plan(model, gpu_machine):
    """Dense: three quarters of each layer's rows, attention and head on the GPU, with 32 MiB of the budget to spare."""
    files, size = ModelFiles.open_files(model), LAYERS * 64 * MIB
    budgets = Budgets(vram=gpu_machine.context + size, ram=None, context=CONTEXT)
    sizes = model_sizes(files, None, CONTEXT, budgets.vram, "f16", gpu_machine.context)
    layers = (split_layer(NEURONS, NEURONS * 3 // 4, "gpu"),) * LAYERS
    placement = Placement("dense", False, budgets, NEURONS, "cpu", "gpu", layers)
    of = {"digests": digests(files, files.row_orders(), None), "sizes": sizes, "hardware": gpu_machine}
    made = finish_plan(placement, name="split", frequencies=None, **of)
    return replace(made, budgets=replace(budgets, vram=made.total_bytes("gpu") + 32 * MIB))


def generated(engine, tokens=8):
    sequence = Sequence(list(IDS), SamplingParams(max_tokens=tokens, ignore_eos=True), engine.tokenizer)
    for _ in engine.run([sequence]):
        pass
    return sequence.output_ids


def by_driver():
    """What the driver says that this process takes; the test is skipped where it does not say."""
    nvml = cuda_memory()._nvml
    used = None if nvml is None else nvml.process(os.getpid())
    if used is None or used <= torch.cuda.memory_reserved():
        pytest.skip("the driver does not tell what a process takes here, as in some containers")
    return used


def test_being_there_has_a_cost_that_is_plausible():
    memory = cuda_memory()
    assert cuda_memory() is memory
    assert 16 * MIB < memory.context() < 4096 * MIB
    assert memory.context() < context_cost(0, memory) <= memory.total()
    assert 0 < memory.free() <= memory.total()


def test_without_the_drivers_count_what_is_less_free_is_counted(monkeypatch):
    found = cuda_memory().context()
    monkeypatch.setattr(cuda_memory_file, "_nvml_of", lambda device: None)
    assert CudaMemory().context() > 0
    assert found > 0


def test_the_process_keeps_its_budget_and_gives_it_back(model, plan):
    memory = cuda_memory()
    before = memory.process() - memory.context()
    with open_engine(model, mode="dense", context=CONTEXT) as host:
        expected = host.logits(IDS)
    with open_engine(model, mode="dense", plan=plan, device="cuda", context=CONTEXT) as engine:
        torch.testing.assert_close(engine.logits(IDS), expected, rtol=1e-2, atol=2e-2)
        generated(engine)
        use = summarise(engine).vram
        assert use.warnings == ()
        assert plan.total_bytes("gpu") * 0.7 < use.process <= use.budget == plan.budgets.vram
        assert {k: v for k, v in use.placed.items() if v} == {k: v for k, v in plan.bytes["gpu"].items() if v}
        assert by_driver() - before <= plan.budgets.vram
    assert memory.process() - memory.context() <= before + 4 * MIB
    assert torch.cuda.memory_reserved() <= before + memory._kept + 4 * MIB


def test_the_allocator_gives_no_more_than_the_budget_leaves(model, plan):
    with open_engine(model, mode="dense", plan=plan, device="cuda", context=CONTEXT):
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(plan.budgets.vram, dtype=torch.uint8, device="cuda")
        torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
    torch.empty(plan.budgets.vram, dtype=torch.uint8, device="cuda")  # no engine is open: no limit is left
    torch.cuda.empty_cache()


def test_rows_on_the_device_are_not_in_host_memory(model, plan):
    def pss():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))

    cuda_memory()
    before = pss()
    placed = plan.bytes["gpu"]["neurons"]
    assert placed > 2 * SLACK
    with open_engine(model, mode="dense", plan=plan, device="cuda", context=CONTEXT):
        assert pss() - before < 2 * CHUNK + SLACK
        maps = psutil.Process().memory_maps(grouped=False)
        assert sum(m.rss for m in maps if Path(m.path).is_relative_to(model)) < 8 * MIB


def test_running_out_of_memory_in_a_step_is_survived(model, plan):
    with open_engine(model, mode="dense", plan=plan, device="cuda", context=CONTEXT) as engine:
        expected, free = generated(engine), engine.pages.free
        ballast = []
        torch.cuda.empty_cache()
        for size in (64 * MIB, 4 * MIB, MIB, 64 << 10):  # until the limit leaves nothing
            try:
                while True:
                    ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                continue
        with pytest.raises(UserError, match=r"(ran out of|has no) memory"):
            engine.hidden_states(IDS * 1)
        assert engine.pages.free == free
        ballast.clear()
        torch.cuda.empty_cache()
        assert generated(engine) == expected


def test_more_than_the_device_has_is_refused(model, plan, demo):
    total = cuda_memory().total()
    with pytest.raises(UserError, match=r"--vram asks for .* of GPU memory are free"):
        open_engine(demo, vram=2 * total)
    large = replace(plan, budgets=replace(plan.budgets, vram=4 * total))
    large = replace(large, bytes={**large.bytes, "gpu": {**large.bytes["gpu"], "neurons": 2 * total}})
    with pytest.raises(UserError, match=r"takes .* of GPU memory, .* CUDA context and kernels, and .* are free"):
        open_engine(model, mode="dense", plan=large, device="cuda", context=CONTEXT)


def test_without_a_plan_one_is_chosen_for_what_is_free(demo_copy, settings_within):
    (demo_copy / "plans" / "default.json").unlink(missing_ok=True)
    told = []
    with open_engine(demo_copy, automatic=True, context=CONTEXT, note=told.append) as engine:
        assert "no plan default; planned now for" in told[0]
        assert engine.options.plan.budgets.vram < cuda_memory().total()
    write_plan(demo_copy, settings_within(64 * MIB, context=CONTEXT))
    with open_engine(demo_copy, automatic=True, context=CONTEXT, note=told.append) as engine:
        assert len(told) == 1
        assert engine.options.plan.name == "default"
        if "gpu" in engine.machine.units:
            assert summarise(engine).vram.process <= engine.options.plan.budgets.vram
