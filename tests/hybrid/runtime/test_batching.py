"""A request gives the same tokens alone and among others, whatever becomes of its pages meanwhile."""

import contextlib
import random
from dataclasses import replace

import pytest
import torch

from hybrid.model.pages import pages_for
from hybrid.runtime.sampler import NumericalError, SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from profiler.artifacts import UserError

CONTEXT = 128
TOKENS = 50


def prompts(count, seed=0, shared=40):
    dice = random.Random(seed)
    beginning = [dice.randrange(300, 4000) for _ in range(shared)]
    return [beginning[: dice.randrange(shared + 1)] + [dice.randrange(300, 4000) for _ in range(dice.randrange(1, 30))]
            for _ in range(count)]  # fmt: skip


def sequences(engine, texts, tokens=TOKENS):
    """Every other one is sampled, with a seed of its own."""
    return [
        Sequence(
            list(ids),
            SamplingParams(max_tokens=tokens, temperature=0.9 * (n % 2), seed=n, ignore_eos=True),
            engine.tokenizer,
        )
        for n, ids in enumerate(texts)
    ]


def outputs(engine, texts, at_once=True):
    made = sequences(engine, texts)
    for group in [made] if at_once else [[one] for one in made]:
        list(engine.run(group))
    assert engine.pages.used == 0
    return [(s.output_ids, s.text) for s in made]


@pytest.fixture(scope="module")
def open_model(demo):
    """The demo on the host, or with rows on both units."""
    settings = PlanSettings(vram=12 << 20, context=CONTEXT, batch=9, kv_format="f32", name="crowd")
    split_plan = make_plan(demo, settings).plan

    def open_one(mode, split=False, **options):
        known = {"kv_format": "f32", "context": CONTEXT, "threads": 1, **options}
        plan = replace(split_plan, mode=mode, sparse=split_plan.sparse or mode != "dense") if split else None
        return open_engine(demo, mode=mode, plan=plan, device="cpu" if split else None, **known)

    return open_one


@pytest.mark.parametrize("split", [False, True], ids=["host", "two units"])
@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_tokens_are_the_same_alone_and_in_a_crowd(open_model, mode, split):
    """In the crowd prompts share pages, are cut as others leave room, and give up their pages where few are left."""
    texts = prompts(9)
    with open_model(mode, split, reuse_prefixes=False) as engine:
        alone = outputs(engine, texts, at_once=False)
    with open_model(mode, split, max_sequences=9) as engine:
        assert not split or any(x.near_banks and x.far_banks for x in engine.machine.scheduler.layers)
        assert outputs(engine, texts) == alone
        load = engine.load()
        assert load.cached_prompt_tokens > 0
        assert load.preemptions == 0
        assert outputs(engine, texts) == alone, "of what was computed before"
        assert engine.load().cached_prompt_tokens > 2 * load.cached_prompt_tokens
    few = (pages_for(CONTEXT) + 4) * load.page_bytes
    with open_model(mode, split, max_sequences=9, kv_memory=few) as engine:
        assert outputs(engine, texts) == alone
        assert engine.load().preemptions > 0
        assert engine.load().pages_total == pages_for(CONTEXT) + 4


def test_more_than_sixteen_texts_grow_together(open_model):
    texts = prompts(19, seed=3)
    with open_model("predicted", max_sequences=19) as engine:
        alone = outputs(engine, texts, at_once=False)
        engine.pages.forget()
        assert outputs(engine, texts) == alone


def test_who_comes_later_changes_nothing_for_who_is_there(open_model):
    texts = prompts(6, seed=5)
    with open_model("predicted", max_sequences=4, kv_memory=None) as engine:
        alone = outputs(engine, texts, at_once=False)
        made, dice = sequences(engine, texts), random.Random(2)
        coming = list(made)
        while coming or engine.busy:
            if coming and dice.random() < 0.2:
                engine.add(coming.pop(0))
            if engine.busy:
                engine.step()
        assert [(s.output_ids, s.text) for s in made] == alone


def test_a_request_that_is_cancelled_leaves_others_as_they_were(open_model):
    texts = prompts(8, seed=7)
    with open_model("exact", max_sequences=3) as engine:
        alone = outputs(engine, texts, at_once=False)
        made, dice = sequences(engine, texts), random.Random(4)
        for sequence in made:
            engine.add(sequence)
        gone = made[::3]
        for at, sequence in enumerate(gone):  # waiting, with a prompt half read, and decoding
            for _ in range(at * 7):
                engine.step()
            engine.cancel(sequence)
            engine.cancel(sequence)
            assert sequence.finish_reason == "cancelled"
        while engine.busy:
            stepped = engine.step()
            assert not set(map(id, stepped)) & set(map(id, gone))
            if dice.random() < 0.1:
                engine.cancel(gone[0])
        kept = [n for n, s in enumerate(made) if s not in gone]
        assert [(made[n].output_ids, made[n].text) for n in kept] == [alone[n] for n in kept]
        assert engine.pages.used == 0


def test_a_step_says_who_got_a_token_or_ended(open_model):
    with open_model("exact", max_sequences=2) as engine:
        assert not engine.busy
        assert engine.step() == []
        one, two = sequences(engine, [[400, 401], [500] * 40], 3)
        engine.add(one)
        engine.add(two)
        assert engine.load().waiting == 2
        seen = []
        while engine.busy:
            seen += engine.step()
            assert 0 <= engine.load().running <= 2
        assert seen.count(one) == seen.count(two) == 3
        assert (one.finish_reason, two.finish_reason) == ("length", "length")
        assert (two.cached_tokens, engine.load().prompt_tokens) == (0, 42)


def test_numbers_that_are_none_end_one_request_and_no_other(open_model, monkeypatch):
    texts = prompts(3, seed=9)
    with open_model("dense", max_sequences=3) as engine:
        alone = outputs(engine, texts)
        engine.pages.forget()
        made = sequences(engine, texts)
        broken, after = made[1], 5
        pick = broken.sampler.pick

        def picked(logits):
            if len(broken.output_ids) == after:
                logits = torch.as_tensor(logits).clone()
                logits[17] = torch.nan
            return pick(logits)

        monkeypatch.setattr(broken.sampler, "pick", picked)
        for sequence in made:
            engine.add(sequence)
        ended = []
        while engine.busy:
            ended += [s for s in engine.step() if s.finish_reason]
        assert broken in ended
        assert broken.finish_reason == "error"
        assert isinstance(broken.failure, NumericalError)
        assert broken.output_ids == alone[1][0][:after]
        assert [(made[n].output_ids, made[n].text) for n in (0, 2)] == [alone[0], alone[2]]
        again = sequences(engine, texts)[1]
        list(engine.run([again]))
        assert again.output_ids == alone[1][0]
        assert again.cached_tokens < len(texts[1]) - 16 or len(texts[1]) < 32, "its pages are not trusted"


def test_a_run_raises_what_one_of_its_requests_failed_with_and_lets_go_of_the_others(open_model, monkeypatch):
    with open_model("dense", max_sequences=3) as engine:
        made = sequences(engine, prompts(3))
        other = sequences(engine, prompts(1))[0]
        engine.add(other)
        monkeypatch.setattr(made[0].sampler, "pick", lambda logits: (_ for _ in ()).throw(UserError("no more")))
        with pytest.raises(UserError, match="no more"):
            list(engine.run(made))
        assert [s.finish_reason for s in made] == ["error", "cancelled", "cancelled"]
        while engine.busy:
            engine.step()
        assert other.finish_reason == "length"


def test_an_abandoned_run_leaves_the_requests_of_others(open_model):
    with open_model("exact", max_sequences=3) as engine:
        texts = prompts(2)
        alone = outputs(engine, texts)
        first, second = sequences(engine, texts)
        steps = engine.run([first])
        next(steps)
        with contextlib.closing(engine.run([second])) as others:
            for _ in range(3):
                next(others)
        for _ in steps:
            pass
        assert (first.output_ids, first.text) == alone[0]
        assert second.finish_reason == "cancelled"
        assert engine.pages.used == 0


def test_other_thresholds_forget_what_was_computed_with_those_before(open_model):
    text = [list(range(400, 460))]
    with open_model("predicted") as engine:
        first = outputs(engine, text)
        engine.set_thresholds((1e9,) * engine.directory.spec.n_layers)
        silenced = outputs(engine, text)
        assert silenced != first
        assert engine.load().cached_prompt_tokens == 0


def test_what_a_mixed_step_did_is_divided_by_tokens(open_model):
    with open_model("dense", max_sequences=4) as engine:
        made = sequences(engine, [[400], [500] * 50], 8)
        list(engine.run(made))
        prefill, decode = engine.ledger.prefill, engine.ledger.decode
        rows = engine.directory.spec.n_layers * engine.directory.spec.n_neurons
        assert (prefill.tokens, decode.tokens) == (51, 14)
        assert prefill.positions == 1 + 50 * 51 // 2
        assert decode.positions == sum(range(2, 9)) + sum(range(51, 58))
        assert prefill.cpu.finished == pytest.approx(51 * rows, abs=20)
        assert decode.cpu.finished == pytest.approx(14 * rows, abs=20)
        assert prefill.seconds > 0 < decode.seconds


def test_a_pool_holds_a_text_of_the_whole_context(open_model):
    with open_model("exact") as engine:
        page = engine.load().page_bytes
        placed = [t for layer in engine.decoder.layers for t in (layer.pages.keys, layer.pages.values)]
        assert sum(t.numel() * t.element_size() for t in placed) == 8 * page
    with pytest.raises(UserError, match=r"a text of 128 tokens takes 8 pages of keys and values, .* there are 7"):
        open_model("exact", kv_memory=8 * page - 1)
    open_model("exact", kv_memory=8 * page).close()
