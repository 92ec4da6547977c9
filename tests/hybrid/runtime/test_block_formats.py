"""The shipped, trained model packed in blocks of 8 and 4 bits: its quality, and the same answers however it is run.

Recorded and batched steps round activations to 8 bits from sums that may differ in the last bit, and where a code falls
to its neighbour what follows is rounded otherwise. The bounds are about twice what was measured: differences of 0.15
among logits that reach 16, a divergence of 1.3e-4, which is less than q8_0 itself costs.
"""

import dataclasses

import pytest

from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from hybrid.stages.quality import evaluate

MODES = ["dense", "exact", "predicted"]
COST = {"q8_0": 1.005, "q4_0": 1.04}  # of perplexity, at most


@pytest.fixture(scope="module", params=COST)
def weight_format(request):
    return request.param


@pytest.fixture(scope="module")
def model(demo_in, weight_format):
    return demo_in(weight_format)


def assert_alike(one, other, mode):
    """Logits `[tokens, vocab]` that differ by where roundings fell, and in predicted mode by a row here and there."""
    assert (one - other).abs().max() < (0.8 if mode == "predicted" else 0.3)
    assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.97
    ours, theirs = one.log_softmax(1), other.log_softmax(1)
    assert (ours.exp() * (ours - theirs)).sum(1).mean() < 3e-4


@pytest.mark.parametrize("mode", MODES)
def test_decoding_five_hundred_tokens_one_by_one_gives_the_batched_logits(model, heldout, mode):
    with open_engine(model, mode=mode) as engine:
        ids = engine.tokenizer.encode(heldout)[:505]
        assert_alike(engine.logits(ids), engine.logits(ids, one_by_one=True), mode)


def test_exact_mode_leaves_out_zeros_alone(model, heldout):
    with open_engine(model, mode="dense") as dense, open_engine(model, mode="exact") as exact:
        ids = dense.tokenizer.encode(heldout)[:200]
        assert_alike(dense.logits(ids, one_by_one=True), exact.logits(ids, one_by_one=True), "exact")
        assert exact.ledger.evaluation.cpu.finished < 0.5 * dense.ledger.evaluation.cpu.finished


def test_what_blocks_cost_in_perplexity(demo, model, weight_format, heldout, passages_of):
    with (
        open_engine(demo, mode="dense") as reference,
        open_engine(model, mode="dense") as dense,
        open_engine(model, mode="predicted") as predicted,
    ):
        best, ours, named = evaluate([reference, dense, predicted], passages_of(reference, [heldout], 512)[:8])
        assert ours.perplexity < COST[weight_format] * best.perplexity
        assert named.perplexity < 1.005 * ours.perplexity
        assert predicted.ledger.evaluation.cpu.gated < 0.4 * dense.ledger.evaluation.cpu.gated


@pytest.mark.parametrize("mode", MODES)
def test_sixteen_sequences_generate_what_each_generates_alone(model, heldout, complete, mode):
    lines = [line for line in heldout.split("\n") if line.strip()][:16]
    with open_engine(model, mode=mode, max_sequences=16) as engine:
        prompts = [engine.tokenizer.encode(line) for line in lines]
        assert complete(engine, prompts, 16) == [complete(engine, [ids], 16)[0] for ids in prompts]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_split_over_two_units_gives_the_logits_of_one(model, heldout, mode, one_by_one):
    settings = PlanSettings(vram=6 << 20, context=256, name="split", kv_format="f32")
    plan = dataclasses.replace(make_plan(model, settings).plan, mode=mode)
    assert any(0 < plan.gpu_rows(i) < plan.n_rows for i in range(len(plan.layers)))
    with (
        open_engine(model, mode=mode, context=256, kv_format="f32") as one,
        open_engine(model, mode=mode, plan=plan, device="cpu", kv_format="f32") as two,
    ):
        ids = one.tokenizer.encode(heldout)[:100]
        assert_alike(one.logits(ids, one_by_one), two.logits(ids, one_by_one), mode)
        assert two.ledger.evaluation.gpu.gated > 0
        assert two.ledger.evaluation.cpu.gated > 0
