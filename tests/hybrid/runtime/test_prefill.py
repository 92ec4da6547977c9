"""Prompts of an open model whose rows are computed in host memory or streamed: logits, bytes, and the choice."""

import dataclasses
from pathlib import Path

import pytest

from hybrid.runtime import sizes
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.prefill import figures_for
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from placement.plan import LayerPlan, Segment
from profiler.artifacts import UserError
from profiler.hardware import read_hardware, write_hardware

CONTEXT, TOKENS, STEP = 256, 100, 64
CLOSE = 2e-4


@pytest.fixture(scope="module")
def split_plan(demo, with_room):
    """Rows of every layer but one on both units; that one's attention is on the CPU, and all of its rows.

    With room on the GPU for steps of `STEP` tokens, which so small a budget has not.
    """
    plan = make_plan(demo, PlanSettings(vram=8 << 20, context=CONTEXT, name="prefill", kv_format="f32")).plan
    cut = LayerPlan("gpu", (Segment(0, 300, "gpu", "gpu"), Segment(300, 1024, "ram", "cpu")))
    on_cpu = LayerPlan("cpu", (Segment(0, 1024, "ram", "cpu"),))
    return dataclasses.replace(with_room(plan, STEP), layers=(cut, cut, on_cpu, cut, cut, cut))


@pytest.fixture(scope="module")
def open_split(demo):
    def open_one(plan, mode, **options):
        plan = dataclasses.replace(plan, mode=mode, sparse=plan.sparse or mode != "dense")
        options = {"prefill_tokens": STEP, **options}
        return open_engine(demo, mode=mode, plan=plan, device="cpu", kv_format="f32", **options)

    return open_one


@pytest.fixture
def small_buffers(monkeypatch):
    """Buffers of 100 rows, so that a layer of the demo takes several."""
    monkeypatch.setattr(sizes, "STREAM_ROWS", 100)


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_both_ways_give_the_same_logits(demo, open_split, split_plan, heldout, small_buffers, mode):
    found = {}
    for way in ("computed", "streamed"):
        with open_split(split_plan, mode, prefill_rows=way) as engine:
            ids = engine.tokenizer.encode(heldout)[:TOKENS]
            found[way] = engine.logits(ids)
            evaluated = engine.ledger.evaluation
            assert (evaluated.streamed_bytes > 0) == (way == "streamed")
            if way == "streamed":
                # 64 and 36 tokens: every cold row of six layers comes twice at most, and in dense mode so it is.
                cold = sum(len(bank) * bank.stride_bytes for x in engine.machine.scheduler.layers
                           for bank in (x.far_banks if x.near.name == "gpu" else x.near_banks))  # fmt: skip
                assert evaluated.streamed_bytes <= 2 * cold
                assert (evaluated.streamed_bytes == 2 * cold) == (mode != "predicted")
                assert evaluated.cpu.gated == 0
    gaps = (found["computed"] - found["streamed"]).abs().amax(dim=1)
    # A predictor's logit that is at the threshold may fall to either side; then later tokens see other keys as well.
    assert (gaps > CLOSE).float().mean().item() <= (0.2 if mode == "predicted" else 0.0)
    assert gaps.max().item() < 0.05
    if mode == "exact":
        with open_engine(demo, mode="dense", kv_format="f32") as whole:
            assert (whole.logits(ids) - found["streamed"]).abs().max().item() < CLOSE


def test_a_prompt_is_streamed_and_decoding_is_not(open_split, split_plan, heldout, complete):
    with open_split(split_plan, "exact", prefill_rows="streamed") as engine:
        ids = engine.tokenizer.encode(heldout)[:TOKENS]
        streamed = complete(engine, [ids], 8)
        prefill, decode = engine.ledger.prefill, engine.ledger.decode
        assert prefill.streamed_bytes > 0
        assert prefill.cpu.gated == 0
        assert decode.streamed_bytes == 0
        assert decode.cpu.gated > 0
    with open_split(split_plan, "exact", prefill_rows="computed") as engine:
        assert complete(engine, [ids], 8) == streamed


def test_the_buffers_are_in_the_budget(open_split, split_plan):
    with open_split(split_plan, split_plan.mode, prefill_rows="streamed") as engine:
        unit, stream, spec = engine.machine.units["gpu"], engine.machine.scheduler.stream, engine.directory.spec
        assert engine.machine.prefill_tokens == STEP
        assert unit.used["buffers"] == split_plan.bytes["gpu"]["buffers"]
        row = sizes.row_bytes(engine.directory)
        with_stream = sizes.buffer_bytes(spec, STEP, CONTEXT, row)
        assert stream.bytes == with_stream - sizes.buffer_bytes(spec, STEP, CONTEXT, 0)


def test_layers_that_are_whole_on_the_host_are_streamed_too(demo, open_split, split_plan, heldout):
    on_gpu = LayerPlan("gpu", (Segment(0, 1024, "gpu", "gpu"),))
    on_cpu = LayerPlan("cpu", (Segment(0, 1024, "ram", "cpu"),))
    whole_layers = dataclasses.replace(split_plan, layers=(on_gpu,) * 2 + (on_cpu,) * 4, sparse=False, mode="dense")
    with (
        open_split(whole_layers, "dense", prefill_rows="streamed") as engine,
        open_engine(demo, mode="dense", kv_format="f32") as one,
    ):
        ids = engine.tokenizer.encode(heldout)[:TOKENS]
        assert (engine.logits(ids) - one.logits(ids)).abs().max().item() < CLOSE
        assert engine.ledger.evaluation.streamed_bytes > 0
        assert engine.ledger.evaluation.cpu.gated == 0
        assert engine.ledger.evaluation.gpu.gated == TOKENS * sum(len(bank) for bank in engine.machine.banks)


def test_a_plan_that_leaves_the_gpu_alone_reads_prompts_as_a_host_alone_does(open_split, split_plan):
    on_cpu = LayerPlan("cpu", (Segment(0, 1024, "ram", "cpu"),))
    taken = {**split_plan.bytes, "gpu": dict.fromkeys(split_plan.bytes["gpu"], 0)}
    alone = dataclasses.replace(split_plan, layers=(on_cpu,) * 6, head="cpu", embeddings="cpu", bytes=taken)
    with open_split(alone, "exact", prefill_tokens=None) as engine:
        assert engine.machine.prefill_tokens == 16
        assert engine.machine.units["gpu"].total == 0
    with open_split(alone, "exact", prefill_tokens=STEP) as engine:
        assert engine.machine.scheduler.stream is None
    with pytest.raises(UserError, match="streamed to a GPU"):
        open_split(alone, "exact", prefill_rows="streamed")


def machine_file(folder: Path, **changes: float) -> Path:
    """A machine on which all is equal but what is given."""
    path = folder / "machine.json"
    write_hardware(path, dataclasses.replace(read_hardware("cpu-stand-in"), measured=True, **changes))
    return path


@pytest.mark.parametrize(("link", "streams"), [(1e14, True), (1e5, False)])
def test_the_machine_decides(open_split, split_plan, heldout, monkeypatch, tmp_path, link, streams):
    """A link that costs nothing is used, one that carries nothing is not; short pieces never stream."""
    machine = read_hardware(machine_file(tmp_path, link_bandwidth=link))
    machine = dataclasses.replace(
        machine, cpu=dataclasses.replace(machine.cpu, bandwidth=1e9 if link < 1e6 else 1e13, flops=1e8)
    )
    monkeypatch.setattr("hybrid.runtime.prefill.this_machine", lambda device: machine)
    with open_split(split_plan, "predicted") as engine:
        ids = engine.tokenizer.encode(heldout)[:TOKENS]
        wanted = engine.machine.scheduler.stream.wanted
        assert [wanted(index, 64) for index in range(6)] == [streams] * 6
        assert not any(wanted(index, 16) for index in range(6))
        engine.logits(ids)
        assert (engine.ledger.evaluation.streamed_bytes > 0) == streams
        frequencies = wanted.costs.frequencies
        assert frequencies is not None and frequencies.has_predictors  # of the profile that the plan was made from
        assert wanted.costs.placement.mode == "predicted"


def test_without_the_profile_every_row_counts(open_split, split_plan, monkeypatch):
    lost = dataclasses.replace(split_plan, digests=dataclasses.replace(split_plan.digests, profile="0" * 64))
    with open_split(lost, "predicted") as engine:
        costs = engine.machine.scheduler.stream.wanted.costs
        assert costs.frequencies is None
        assert costs.placement.mode == "dense"
        assert costs.ways(64)[0].streamed is not None


def test_figures_are_the_machines_else_those_of_the_plan_else_nominal(split_plan, monkeypatch, tmp_path):
    options = EngineOptions(mode="exact", plan=split_plan, second_device="cpu")
    measured, asked = read_hardware("rtx4090-desktop"), []
    monkeypatch.setattr("hybrid.runtime.prefill.this_machine", lambda device: asked.append(device) or measured)
    assert figures_for(options, split_plan) is measured
    assert figures_for(dataclasses.replace(options, second_device="cuda"), split_plan) is measured
    assert asked == ["cpu", "cuda"]
    monkeypatch.setattr("hybrid.runtime.prefill.this_machine", lambda device: None)
    laptop = read_hardware("rtx4060-laptop")
    planned = dataclasses.replace(split_plan, hardware=laptop.name, hardware_digest=laptop.digest)
    assert figures_for(options, planned) == laptop
    changed = dataclasses.replace(planned, hardware_digest="0" * 64)
    assert figures_for(options, changed).name == "cpu-stand-in"


def test_steps_that_are_too_small_to_stream(open_split, split_plan):
    for options in ({"prefill_tokens": 16}, {"prefill_tokens": None}):
        with pytest.raises(UserError, match="of more than 16 tokens, and steps have 16 here"):
            open_split(split_plan, "exact", prefill_rows="streamed", **options)
        with open_split(split_plan, "exact", **options) as engine:
            assert engine.machine.scheduler.stream is None


def test_a_way_that_does_not_exist(split_plan):
    with pytest.raises(UserError, match="auto or computed or streamed"):
        EngineOptions(mode="exact", plan=split_plan, second_device="cpu", prefill_rows="guessed")
