"""A mode is a function of one token, and the same one in prefill, batch and decode; on the shipped, trained model."""

from dataclasses import replace

import pytest
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.summary import summarise
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from hybrid.stages.quality import evaluate
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.hardware import read_hardware, write_hardware
from profiler.predictor_file import read_predictors
from profiler.speeds import FlashSpeed

MODES = ["dense", "exact", "predicted"]
CLOSE = 2e-4  # of logits whose spread is of the order of ten, with fp32 pages: what summation order explains
CLOSE_F16 = 2e-2  # with fp16 pages, where a last bit may round to either side


@pytest.fixture(scope="module")
def split_plan(demo, tmp_path_factory):
    """A plan of the demo with rows on both units."""
    report = make_plan(demo, PlanSettings(vram=8 << 20, context=256, name="split-for-tests", kv_format="f32"))
    assert any(0 < report.plan.gpu_rows(i) < report.plan.n_rows for i in range(len(report.plan.layers)))
    return report.plan


def test_rows_left_on_flash_are_computed_where_they_lie(demo, heldout, tmp_path):
    machine = replace(read_hardware("cpu-stand-in"), flash=(FlashSpeed(4096, 1, 1e8),))
    write_hardware(tmp_path / "machine.json", machine)
    settings = PlanSettings(
        vram=0, ram=10 << 20, context=256, hardware=str(tmp_path / "machine.json"), name="flash", kv_format="f32"
    )
    plan = make_plan(demo, settings).plan
    assert plan.total_bytes("flash") > 0
    assert any("flash" in warning for warning in plan.solver.warnings)
    with open_engine(demo, kv_format="f32") as whole, open_engine(demo, plan=plan, kv_format="f32") as split:
        ids = text_ids(whole, heldout, 60)
        assert (whole.logits(ids) - split.logits(ids)).abs().max().item() < CLOSE
        assert summarise(split).flash_bytes == plan.total_bytes("flash")


def text_ids(engine, heldout, count):
    return engine.tokenizer.encode(heldout)[:count]


@pytest.mark.parametrize("kv_format", ["f32", "f16"])
@pytest.mark.parametrize("mode", MODES)
def test_decoding_five_hundred_tokens_one_by_one_gives_the_batched_logits(demo, heldout, mode, kv_format):
    close = CLOSE if kv_format == "f32" else CLOSE_F16
    with open_engine(demo, mode=mode, kv_format=kv_format) as engine:
        ids = text_ids(engine, heldout, 505)
        batched, single = engine.logits(ids), engine.logits(ids, one_by_one=True)
    gaps = (batched - single).abs().amax(dim=1)
    if mode == "predicted":
        # A predictor's output at its threshold may fall to either side when sums are ordered otherwise: rarely.
        assert (gaps > close).float().mean().item() < 0.02
        assert (batched.argmax(1) == single.argmax(1)).float().mean().item() > 0.99
    else:
        assert gaps.max().item() < close


def test_exact_mode_is_dense_mode_up_to_summation_order(demo, heldout, complete):
    with (
        open_engine(demo, mode="dense", kv_format="f32") as dense,
        open_engine(demo, mode="exact", kv_format="f32") as exact,
    ):
        ids = text_ids(dense, heldout, 300)
        assert (dense.logits(ids) - exact.logits(ids)).abs().max().item() < CLOSE
        for engine in (dense, exact):
            complete(engine, [ids[:20]], 8)
        rows = dense.directory.spec.n_neurons * dense.directory.spec.n_layers
        assert dense.ledger.decode.cpu.finished == rows * dense.ledger.decode.tokens
        assert exact.ledger.decode.cpu.gated == rows * exact.ledger.decode.tokens
        assert exact.ledger.decode.cpu.finished < 0.5 * exact.ledger.decode.cpu.gated


def test_predicted_mode_keeps_perplexity_and_computes_fewer_rows(demo, heldout, passages_of):
    with open_engine(demo, mode="dense") as dense, open_engine(demo, mode="predicted") as predicted:
        reference, quality = evaluate([dense, predicted], passages_of(dense, [heldout], 512)[:16])
        assert quality.perplexity < 1.005 * reference.perplexity
        assert predicted.ledger.evaluation.cpu.gated < 0.4 * dense.ledger.evaluation.cpu.gated


def test_silenced_predictors_ruin_perplexity(demo, heldout, passages_of):
    with ModelDirectory.open(demo) as directory:
        silent = read_predictors(directory.predictors_path("default")).silenced()
    options = EngineOptions(mode="predicted", predictors=silent)
    with open_engine(demo, mode="dense") as dense, Engine(ModelDirectory.open(demo), options) as silenced:
        reference, quality = evaluate([dense, silenced], passages_of(dense, [heldout], 512)[:4])
        assert silenced.ledger.evaluation.cpu.gated == 0
        assert quality.perplexity > 3 * reference.perplexity


@pytest.mark.parametrize("one_by_one", [False, True])
def test_thresholds_of_an_open_engine_can_be_changed(demo, heldout, one_by_one):
    with ModelDirectory.open(demo) as directory:
        stored = read_predictors(directory.predictors_path("default"))
    others = tuple(threshold + 0.5 for threshold in stored.thresholds)
    options = EngineOptions(mode="predicted", predictors=stored.with_thresholds(others))
    with open_engine(demo, mode="predicted") as engine, Engine(ModelDirectory.open(demo), options) as other:
        ids = text_ids(engine, heldout, 24)
        before, expected = engine.logits(ids, one_by_one), other.logits(ids, one_by_one)
        assert not torch.equal(before, expected)
        engine.set_thresholds(others)
        assert torch.equal(engine.logits(ids, one_by_one), expected)
        for wrong in (others[:-1], (float("nan"),) * len(others)):
            with pytest.raises(UserError, match="threshold"):
                engine.set_thresholds(wrong)
        assert torch.equal(engine.logits(ids, one_by_one), expected)
        engine.set_thresholds(stored.thresholds)
        assert torch.equal(engine.logits(ids, one_by_one), before)
    with open_engine(demo, mode="exact") as exact, pytest.raises(UserError, match="no predictors"):
        exact.set_thresholds(others)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_generates_the_same_alone_and_in_a_batch(demo, complete, mode):
    starts = ["def parse_args(", "class Stack:\n    def", "import os\n", "for i in range("]
    texts = [start + more for start in starts for more in ("", "self", "1, 2", "x" * 40)]
    with open_engine(demo, mode=mode, max_sequences=16) as engine:
        prompts = [engine.tokenizer.encode(text) for text in texts]
        assert complete(engine, prompts, 24) == [complete(engine, [ids], 24)[0] for ids in prompts]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_split_over_two_units_gives_the_logits_of_one(demo, heldout, split_plan, mode, one_by_one):
    placement = replace(split_plan, mode=mode)
    with (
        open_engine(demo, mode=mode, context=256, kv_format="f32") as one,
        open_engine(demo, mode=mode, plan=placement, device="cpu", kv_format="f32") as two,
    ):
        ids = text_ids(one, heldout, 200)
        gaps = (one.logits(ids, one_by_one) - two.logits(ids, one_by_one)).abs().amax(dim=1)
        assert (gaps > CLOSE).float().mean().item() <= (0.02 if mode == "predicted" else 0.0)
        activity = two.ledger.evaluation
        assert activity.gpu.gated > 0
        assert activity.cpu.gated > 0
        assert activity.overlap.far > 0


def test_the_second_device_takes_exactly_the_bytes_that_the_plan_counted(demo, split_plan):
    with open_engine(demo, mode="predicted", plan=split_plan, device="cpu", kv_format="f32") as engine:
        used = engine.machine.units["gpu"].used
        planned = {purpose: size for purpose, size in split_plan.bytes["gpu"].items() if size}
        assert dict(used) == planned
        assert sum(used.values()) <= split_plan.budgets.vram


def test_greedy_tokens_are_those_of_transformers(demo, complete):
    import transformers

    from hybrid.stages.shipped import CHECKPOINT

    oracle = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompts = ["def parse_args(", "class Stack:", "import ", "    for line in", "try:\n"]
    with open_engine(demo, mode="exact", kv_format="f32") as engine:
        for prompt in prompts:
            ids = engine.tokenizer.encode(prompt)
            with torch.inference_mode():
                expected = oracle.generate(
                    torch.tensor([ids]), max_new_tokens=40, min_new_tokens=40, do_sample=False, eos_token_id=None
                )
            assert complete(engine, [ids], 40) == [expected[0, len(ids) :].tolist()]
