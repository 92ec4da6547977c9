"""A long piece of a prompt is left between layers, so that others get their tokens; its result stays what it is."""

from array import array
from dataclasses import replace

import pytest
import torch

from hybrid.model.eager import Step
from hybrid.model.kv_cache import Span
from hybrid.model.pages import pages_for
from hybrid.runtime.activity import Activity
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.scheduler import Scheduler
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from placement.plan import LayerPlan, Segment

CONTEXT, PIECE, SLOTS, TOKENS = 128, 48, 3, 8
LONG = [300 + 7 * n for n in range(100)]


@pytest.fixture(scope="module")
def streaming_plan(demo, with_room):
    """Rows of layers on both units, with room to stream them."""
    settings = PlanSettings(vram=12 << 20, context=CONTEXT, batch=SLOTS, kv_format="f32", name="long")
    cut = LayerPlan("gpu", (Segment(0, 300, "gpu", "gpu"), Segment(300, 1024, "ram", "cpu")))
    return replace(with_room(make_plan(demo, settings).plan, PIECE), layers=(cut,) * 6)


WAYS = ["host", "ahead", "ahead, nothing recorded", "streamed", "computed", "a GPU's operators"]


@pytest.fixture(scope="module", params=WAYS)
def engine(request, demo, look_ahead, streaming_plan, without_recorded_step, tiny, two_units):
    known = {"kv_format": "f32", "max_sequences": SLOTS, "threads": 1, "reuse_prefixes": False}
    if request.param == "a GPU's operators":
        both = ("gpu:0.4g 0.6c", "cpu:0.2g 0.5c 0.3g")
        opened = two_units(tiny("llama"), *both, embeddings="gpu", head="gpu", prefill_tokens=20, **known)
        yield from running(opened)
        return
    known |= {"context": CONTEXT, "prefill_tokens": PIECE}
    if request.param in ("streamed", "computed"):
        plan = replace(streaming_plan, mode="predicted", sparse=True)
        opened = open_engine(demo, mode="predicted", plan=plan, device="cpu", prefill_rows=request.param, **known)
    else:
        ahead = request.param.startswith("ahead")
        opened = open_engine(look_ahead if ahead else demo, mode="predicted" if ahead else "exact", **known)
    if request.param.endswith("recorded"):
        without_recorded_step(opened)
    yield from running(opened)


def running(engine):
    with engine:
        yield engine


def text(engine, count):
    return [i % engine.directory.spec.vocab_size for i in LONG[:count]]


def tables(engine, *tokens):
    """Block tables of so many texts, one behind the other."""
    first = 0
    for count in tokens:
        yield array("q", range(first, first + pages_for(count)))
        first += pages_for(count)


def test_what_is_computed_between_layers_changes_nothing_and_is_not_changed(engine):
    passes, longest = engine.passes, engine.machine.prefill_tokens
    long, other, third = tables(engine, longest, 12, longest)
    whole = Step(text(engine, longest), [Span(long, 0, longest)])
    few = [Step([i], [Span(other, at, 1)]) for at, i in enumerate(text(engine, 12))]
    many = Step(list(reversed(text(engine, longest))), [Span(third, 0, longest)])
    at_once = passes.next_logits(whole, [longest - 1], Activity()).clone()
    beside = [passes.next_logits(step, [0], Activity()).clone() for step in few]
    much = passes.next_logits(many, [longest - 1], Activity()).clone()

    counted, turns = Activity(), 0
    begun, found = passes.begin(whole, counted), None
    while (found := passes.advance(begun, 0.0, wanted=True)) is None:
        assert torch.equal(passes.next_logits(few[turns % 12], [0], Activity()), beside[turns % 12])
        if turns == 0:
            assert torch.equal(passes.next_logits(many, [longest - 1], Activity()), much)
        turns += 1
    assert turns == engine.directory.spec.n_layers - 1
    assert torch.equal(found, at_once)
    alone = Activity()
    passes.next_logits(whole, [], alone)
    assert (counted.tokens, counted.positions) == (alone.tokens, alone.positions)
    assert (counted.cpu, counted.gpu, counted.streamed_bytes) == (alone.cpu, alone.gpu, alone.streamed_bytes)


def generated(engine, prompts, tokens):
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return [Sequence(list(ids), params, engine.tokenizer) for ids in prompts]


def outputs(engine, prompts, tokens):
    made = generated(engine, prompts, tokens)
    for sequence in made:
        list(engine.run([sequence]))
    return [sequence.output_ids for sequence in made]


def test_others_get_a_token_in_every_step_while_a_long_prompt_is_read(engine):
    layers, long = engine.directory.spec.n_layers, engine.machine.prefill_tokens
    prompts = [text(engine, 3), text(engine, long)]
    before = engine.ledger.prefill.tokens
    alone = outputs(engine, prompts, TOKENS)
    engine.batcher.pace = 1.0  # a layer in each step
    first, late = generated(engine, prompts, TOKENS)
    engine.add(first)
    engine.step()
    engine.add(late)
    steps = 0
    while not late.output_ids:
        so_far = len(first.output_ids)
        assert first in engine.step()
        assert len(first.output_ids) == so_far + 1
        steps += 1
    assert steps == layers
    while engine.busy:
        engine.step()
    assert [first.output_ids, late.output_ids] == alone
    assert engine.ledger.prefill.tokens == before + 2 * (3 + long)
    assert engine.pages.used == 0


def left_between_layers(engine):
    """Prompts, what they give alone, and both under way: one decodes, and the long one is left between two layers."""
    prompts = [text(engine, 3), text(engine, engine.machine.prefill_tokens)]
    alone = outputs(engine, prompts, TOKENS)
    engine.batcher.pace = 1.0
    first, late = generated(engine, prompts, TOKENS)
    engine.add(first)
    engine.step()
    engine.add(late)
    engine.step()
    return prompts, alone, first, late


def test_a_long_prompt_may_be_cancelled_between_layers(engine):
    prompts, alone, first, late = left_between_layers(engine)
    engine.cancel(late)
    again = generated(engine, prompts, TOKENS)[1]
    engine.add(again)
    while engine.busy:
        engine.step()
    assert [first.output_ids, again.output_ids] == alone
    assert late.output_ids == []
    assert engine.pages.used == 0


def test_a_pass_that_fails_between_layers_is_begun_anew(engine, monkeypatch):
    _, alone, first, late = left_between_layers(engine)
    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "_computed", lambda *arguments: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            engine.step()
    while engine.busy:
        engine.step()
    assert [first.output_ids, late.output_ids] == alone
