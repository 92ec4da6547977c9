"""An engine within a budget of a device's memory, from opening to running out of it, on a stand-in of given figures."""

import dataclasses

import pytest
import torch

from hybrid.runtime import loader
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.runtime.summary import summarise
from hybrid.runtime.unit import Unit
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from placement.plan import PURPOSES
from profiler.artifacts import UserError

MIB = 1 << 20
CONTEXT = 256
IDS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def plan(demo):
    """Rows of some layers on both units, for 7 MiB of which none is planned for a context."""
    return make_plan(demo, PlanSettings(vram=7 * MIB, context=CONTEXT, name="kept", kv_format="f32")).plan


@pytest.fixture(scope="module")
def open_one(demo):
    def open_here(**options):
        return open_engine(demo, mode="predicted", device="cpu", context=CONTEXT, kv_format="f32", **options)

    return open_here


@pytest.fixture(scope="module")
def expected(open_one, plan):
    with open_one(plan=plan) as engine:
        return engine.logits(IDS), generated(engine)


def generated(engine, tokens=6):
    sequence = Sequence(list(IDS), SamplingParams(max_tokens=tokens, ignore_eos=True), engine.tokenizer)
    for _ in engine.run([sequence]):
        pass
    return sequence.output_ids


def test_the_context_is_a_part_of_the_budget(open_one, plan, pretended_device):
    device = pretended_device(context=60 << 10, process=90 << 10, growth=2 << 10, rounding=1 << 10)
    plan, cost = dataclasses.replace(plan, budgets=dataclasses.replace(plan.budgets, vram=8 * MIB)), 63 << 10
    with open_one(plan=plan, memory=device) as engine:
        unit = engine.machine.units["gpu"]
        assert dict(unit.used) == {**{k: v for k, v in plan.bytes["gpu"].items() if v}, "context": cost}
        assert device.allowed == plan.budgets.vram - cost + (1 << 10)
        device.process_bytes = 5 * MIB
        summary = summarise(engine)
        assert summary.vram.process == 5 * MIB - (30 << 10), "what was another's before is not counted"
        assert summary.vram.budget == plan.budgets.vram
        assert summary.vram.planned == plan.bytes["gpu"]
        assert summary.memory["gpu"] == summary.vram.placed
        assert summary.vram_warnings == ("context took 63.0 KiB of GPU memory, 63.0 KiB more than planned",)
        device.process_bytes = 9 * MIB
        assert "more than its budget" in summarise(engine).vram_warnings[1]
    assert (device.allowed, device.returned) == (0, 1), "all is given back"


def test_a_named_plan_that_does_not_fit_is_an_error_with_both_figures(demo, open_one, plan, pretended_device):
    device = pretended_device(free=5 * MIB)
    command = rf"close what uses it, or plan anew: hybrid plan {demo} --vram 5MiB"
    with pytest.raises(
        UserError, match=rf"takes 7\.0 MiB of GPU memory and 5\.0 MiB are free, 2\.0 MiB too little; {command}"
    ):
        open_one(plan=plan, memory=device)
    device = pretended_device(context=200 << 10)
    with pytest.raises(UserError, match=r"takes 7\.2 MiB .* 200\.0 KiB of it the CUDA context .* budget is 7\.0 MiB"):
        open_one(plan=plan, memory=device)
    assert device.allowed == 0


def test_a_chosen_plan_that_does_not_fit_is_made_anew_and_gives_the_same_text(
    demo_copy, plan, pretended_device, expected
):
    make_plan(demo_copy, PlanSettings(vram=7 * MIB, context=CONTEXT, kv_format="f32"))
    for free, warned in ((7 * MIB, False), (6 * MIB, True)):
        told, how, device = [], [], pretended_device(free=free, context=64)
        options = {"device": "cpu", "context": CONTEXT, "kv_format": "f32", "memory": device}
        with open_engine(demo_copy, automatic=True, note=told.append, inform=how.append, **options) as engine:
            assert bool(told) == warned
            assert (engine.options.plan.budgets.vram < 7 * MIB) == warned
            assert engine.machine.units["gpu"].total <= engine.options.plan.budgets.vram
            torch.testing.assert_close(engine.logits(IDS), expected[0], rtol=1e-4, atol=1e-4)
    assert "make it anew with: hybrid plan" in told[0]
    assert "for 5.5 MiB of the 6.0 MiB that are free" in how[0]


def test_a_budget_is_planned_for_when_the_model_is_opened(demo, pretended_device, expected):
    told, device = [], pretended_device(free=60 * MIB, context=MIB, growth=0)
    options = {"device": "cpu", "context": CONTEXT, "kv_format": "f32", "memory": device, "note": told.append}
    with open_engine(demo, vram=8 * MIB, **options) as engine:
        assert dict(engine.machine.units["gpu"].used)["context"] == MIB
        assert 7.5 * MIB < engine.machine.units["gpu"].total <= 8 * MIB
        assert summarise(engine).vram_warnings == ()
        torch.testing.assert_close(engine.logits(IDS), expected[0], rtol=1e-4, atol=1e-4)
    assert told == []
    with pytest.raises(UserError, match=r"--vram asks for 70\.0 MiB and 61\.0 MiB of host memory are free"):
        open_engine(demo, vram=70 * MIB, **options)
    with open_engine(demo, vram=0, context=CONTEXT) as engine:
        assert set(engine.machine.units) == {"cpu"}


def test_what_is_copied_is_told_as_it_goes(open_one, plan):
    heard = []
    with open_one(plan=plan, tell=lambda done, total: heard.append((done, total))):
        total = sum(v for k, v in plan.bytes["gpu"].items() if k not in ("kv", "buffers", "context"))
        assert heard == sorted(heard)
        assert heard[-1] == (total, total)


def test_a_plan_of_the_host_alone_needs_no_device(demo, plan):
    files_plan = make_plan(demo, PlanSettings(vram=1, context=CONTEXT, name="none-there")).plan
    assert files_plan.total_bytes("gpu") == 0
    with open_engine(demo, plan=files_plan, device="cuda") as engine:
        assert set(engine.machine.units) == {"cpu"}
        assert summarise(engine).vram is None


def test_a_device_that_fills_up_while_it_is_loaded_gets_all_back(open_one, plan, pretended_device, monkeypatch):
    placed, place = [], Unit.place

    def full(unit, tensor, purpose, source=None):
        placed.append(purpose)
        if unit.name == "gpu" and purpose == "neurons":
            with unit.explain_exhaustion(purpose):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return place(unit, tensor, purpose, source)

    device = pretended_device()
    monkeypatch.setattr(Unit, "place", full)
    with pytest.raises(UserError, match=r"the gpu has no memory left for neurons: .* are free"):
        open_one(plan=plan, memory=device)
    assert len(placed) > 10
    assert (device.allowed, device.returned) == (0, 1)


class FullOnce:
    """A tap under which a step runs out of memory, once, in a layer."""

    def __init__(self, layer, error):
        self.layer, self.error = layer, error

    def ffn(self, index, x, activations, named):
        if index == self.layer and self.error is not None:
            error, self.error = self.error, None
            held = torch.zeros(1000)  # noqa: F841  # of the step that fails
            raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_running_out_of_memory_in_a_step_gives_pages_back_and_the_engine_goes_on(
    open_one, plan, pretended_device, expected, error
):
    device, ran_out = pretended_device(), r"ran out of memory in a step of 4 tokens: .* 3\.0 MiB of the device are free"
    with open_one(plan=plan, memory=device) as engine:
        device.free_bytes = 3 * MIB
        free, tap = engine.pages.free, FullOnce(3, error)
        engine.machine.scheduler.tap = tap
        with pytest.raises(
            UserError, match=r"ran out of memory in a step of 4 tokens: .* 3\.0 MiB of the device"
        ) as caught:
            generated(engine)
        assert caught.value.__cause__ is None
        left = [frame.f_locals for frame in frames_of(error) if frame.f_code.co_name == "ffn"]
        assert left == [{}], "what the step held is let go, though its error is still there"
        assert engine.pages.free == free
        assert device.returned == 1
        assert not engine.busy
        engine.machine.scheduler.tap = None
        assert generated(engine) == expected[1]
        tap.error = error
        with pytest.raises(UserError, match=ran_out):
            engine.hidden_states(IDS, tap=tap)
        assert engine.pages.free == free


def frames_of(error):
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at.tb_frame)
        at = at.tb_next
    return found


def test_other_errors_of_a_step_stay_what_they_are(open_one, plan):
    with open_one(plan=plan) as engine, pytest.raises(RuntimeError, match="not a number"):
        engine.hidden_states(IDS, tap=FullOnce(0, RuntimeError("not a number")))


def test_a_step_that_failed_can_be_tried_again(open_one, plan, expected):
    """Who drives steps one by one finds a prompt waiting that was not computed."""
    with open_one(plan=plan) as engine:
        sequence = Sequence(list(IDS), SamplingParams(max_tokens=6, ignore_eos=True), engine.tokenizer)
        engine.add(sequence)
        engine.machine.scheduler.tap = FullOnce(5, torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(UserError, match="ran out of memory"):
            engine.step()
        assert engine.busy
        engine.machine.scheduler.tap = None
        while engine.busy:
            engine.step()
        assert sequence.output_ids == expected[1]


def test_purposes_are_those_of_plans(open_one, plan):
    with open_one(plan=plan) as engine:
        assert set(engine.machine.units["gpu"].used) <= set(PURPOSES)


def test_what_a_device_holds_is_cut_from_one_piece(open_one, demo, plan, pretended_device, monkeypatch, expected):
    """A unit as a GPU's is, without threads of the host, over ordinary memory."""
    device = pretended_device(context=MIB, process=MIB, rounding=MIB)
    budgets = dataclasses.replace(plan.budgets, vram=10 * MIB)

    def unit(budget, memory):
        return Unit("gpu", torch.device("cpu"), None, in_place=False, budget=budget, memory=memory)

    monkeypatch.setattr(loader, "cuda_unit", unit)
    options = {"mode": "predicted", "context": CONTEXT, "kv_format": "f32", "memory": device, "device": "cuda"}
    with open_engine(demo, plan=dataclasses.replace(plan, budgets=budgets), **options) as engine:
        assert device.allowed == 10 * MIB - 2 * MIB + MIB
        outer, layers = engine.decoder.outer, engine.decoder.layers
        tensors = [
            outer.embeddings.data,
            layers[0].q.weight.data,
            layers[3].pages.keys,
            layers[5].attention_norm.weight,
        ]
        tensors += [b.memory[0] for layer in engine.machine.scheduler.layers for b in layer.near_banks]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        assert all(tensor.data_ptr() % 256 == tensors[0].data_ptr() % 256 for tensor in tensors)
        torch.testing.assert_close(engine.logits(IDS), expected[0], rtol=1e-4, atol=1e-4)
        assert summarise(engine).vram.placed == {k: v for k, v in plan.bytes["gpu"].items() if v} | {"context": 2 * MIB}
    assert device.allowed == 0


def test_a_model_that_is_read_into_memory_needs_room_there_for_what_stays(open_one, plan, monkeypatch):
    stored = sum(v for k, v in plan.bytes["gpu"].items() if k not in ("kv", "buffers", "context"))
    with open_one(plan=plan) as engine:
        needed = engine.directory.weight_bytes - stored
        needed += sum(p.nbytes for p in engine.machine.predictors.layers)
    monkeypatch.setattr(loader, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="--no-mmap reads"):
        open_one(plan=plan, mmap=False)
    monkeypatch.setattr(loader, "available_memory", lambda: needed)
    open_one(plan=plan, mmap=False).close()
