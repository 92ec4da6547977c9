"""Both units of a layer at the same time, or one after the other: the same bits."""

import dataclasses
import time

import pytest
import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.activity import Activity
from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.timing import StepTimes
from hybrid.runtime.unit import Unit
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan

PROMPTS = (1, 5)
SLEEP = 0.03  # seconds


@pytest.fixture(scope="module", params=["bf16", "q8_0", "q4_0"])
def model_and_plan(request, demo, demo_in):
    """The demo in a format, and a plan with rows of some layers on both units."""
    model = demo if request.param == "bf16" else demo_in(request.param)
    plan = make_plan(model, PlanSettings(vram=6 << 20, context=256, name="overlap", kv_format="f32", batch=5)).plan
    assert any(0 < plan.gpu_rows(i) < plan.n_rows for i in range(len(plan.layers)))
    return model, plan


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_the_bits_are_the_same(model_and_plan, heldout, complete, without_recorded_step, mode, recorded):
    (model, plan), found = model_and_plan, []
    plan = dataclasses.replace(plan, mode=mode, sparse=plan.sparse or mode != "dense")
    for overlap in (True, False):
        options = {"device": "cpu", "kv_format": "f32", "max_sequences": max(PROMPTS)}
        with open_engine(model, mode=mode, plan=plan, overlap=overlap, **options) as engine:
            if not recorded:
                without_recorded_step(engine)
            ids, tokens = engine.tokenizer.encode(heldout)[:30], 5 if recorded else 2
            texts = [engine.logits(ids), engine.logits(ids[: 2 * tokens], one_by_one=True)]
            prompts = [ids[at : at + 7] for at in range(max(PROMPTS))]
            found.append((texts, [complete(engine, prompts[:count], tokens) for count in PROMPTS]))
            assert engine.ledger.decode.overlap.far > 0
            assert overlap or engine.ledger.decode.hidden_share == 0
    (texts, completions), (in_turn, completed_in_turn) = found
    assert all(torch.equal(one, other) for one, other in zip(texts, in_turn, strict=True))
    assert completions == completed_in_turn


class Sleeping(Unit):
    """A unit that takes long, whatever the machine."""

    def __init__(self, name):
        super().__init__(name, torch.device("cpu"), cpu.Pool(1), in_place=True, budget=None)

    def sparse_ffn(self, *arguments, **options):
        time.sleep(SLEEP)
        return super().sparse_ffn(*arguments, **options)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_slow_second_device_computes_at_the_same_time(overlap):
    rows = torch.randn(40, 3 * 24).bfloat16()
    banks = [
        RowBank(rows[part], "bf16", 24, True, "relu", first_row=part.start) for part in (slice(0, 8), slice(8, 40))
    ]
    layer = SplitLayer(Sleeping("gpu"), Sleeping("cpu"), banks[:1], banks[1:], None, None)
    lane, activity = ThreadLane(), Activity()
    try:
        for _ in range(5):
            scheduler = Scheduler([layer], "exact", True, lane, overlap=overlap)
            scheduler.times = StepTimes()
            scheduler.feed_forward(0, torch.randn(1, 24), torch.randn(1, 24))
            scheduler.times.settle(activity.overlap, None)
    finally:
        lane.close()
    assert activity.overlap.smaller >= 5 * SLEEP
    assert activity.hidden_share > 0.5 if overlap else activity.hidden_share == 0
