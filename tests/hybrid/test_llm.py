"""The engine as a Python object, on the shipped model."""

import json
from dataclasses import replace

import pytest
import torch

import hybrid
from hybrid import LLM, Grammar, SamplingParams
from profiler.artifacts import UserError


@pytest.fixture(scope="module")
def llm(demo):
    with LLM(demo, max_sequences=3) as llm:
        yield llm


def test_the_name_demo_opens_the_shipped_model(demo):
    with LLM("demo") as llm:
        assert llm.mode == "predicted"
        assert llm.generate("import ", SamplingParams(max_tokens=3, ignore_eos=True))[0].finish_reason == "length"


def test_completions_come_in_the_order_of_the_prompts_even_beyond_the_batch(llm):
    prompts = ["def a(", "class B", "import ", "for c in", "while d:"]
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    together = llm.generate(prompts, params)
    assert [c.text for c in together] == [llm.generate(p, params)[0].text for p in prompts]
    for completion in together:
        assert len(completion.token_ids) == 10
        assert completion.finish_reason == "length"
        assert completion.first_token_seconds > 0


def test_a_stream_gives_the_text_of_generate(llm):
    params = SamplingParams(max_tokens=40, temperature=0.9, top_p=0.9, seed=7)
    pieces = list(llm.stream("class Stack:", params))
    assert len(pieces) > 5
    assert "".join(pieces) == llm.generate("class Stack:", params)[0].text == llm.last_completion.text


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(llm):
    free = llm.generate("def main():", SamplingParams(max_tokens=60, ignore_eos=True))[0].text
    stop = free[20:25]
    params = SamplingParams(max_tokens=60, ignore_eos=True, stop=(stop,))
    shown = ""
    for piece in llm.stream("def main():", params):
        shown += piece
        assert stop not in shown
    assert shown == free[: free.index(stop)]
    assert llm.last_completion.finish_reason == "stop"


def test_n_gives_so_many_texts_of_each_prompt_in_order_whatever_runs_beside_them(llm):
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=3, n=3, ignore_eos=True)
    prompts = ["def a(", "class B"]
    together = llm.generate(prompts, params)
    assert [c.prompt_token_ids for c in together] == [llm.tokenizer.encode(p) for p in prompts for _ in range(3)]
    assert [c.text for c in together] == [c.text for p in prompts for c in llm.generate(p, params)]
    assert len({c.text for c in together[:3]}) == 3
    assert llm.generate(prompts[0], replace(params, n=1))[0].text == together[0].text
    with pytest.raises(UserError, match="n is 3"):
        llm.stream("x", params)


def test_logprobs_are_those_of_the_logits(llm):
    params = SamplingParams(max_tokens=6, logprobs=2, temperature=0.7, seed=1, ignore_eos=True, repetition_penalty=1.3)
    completion = llm.generate("class Stack:", params)[0]
    ids = completion.prompt_token_ids + completion.token_ids
    expected = llm.logits(ids).log_softmax(-1)[len(completion.prompt_token_ids) - 1 : -1]
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    for row, entry in zip(expected, completion.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-3)
        best = row.topk(2)
        assert [i for i, _ in entry.alternatives] == best.indices.tolist()
        assert [value for _, value in entry.alternatives] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert llm.generate("x", SamplingParams(max_tokens=1))[0].logprobs is None


def test_a_schema_is_met_beside_texts_without_one(llm):
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    free = SamplingParams(max_tokens=12, ignore_eos=True)
    bound = SamplingParams(
        max_tokens=60, temperature=1.0, seed=2, n=2, grammar=Grammar("json_schema", json.dumps(schema))
    )
    for completion in llm.generate(["import json", "{"], bound):
        body = json.loads(completion.text)
        assert completion.finish_reason == "stop"
        assert body["a"] in ("x", "y") and isinstance(body["b"], bool)
    assert llm.generate("def a(", free)[0].finish_reason == "length"
    with pytest.raises(UserError, match="logit_bias names token 4096"):
        llm.generate("x", SamplingParams(logit_bias={4096: 1.0}))


def test_the_space_between_prompt_and_text_is_the_texts(llm):
    ids = llm.tokenizer.encode("import numpy as np")
    at = len(llm.tokenizer.encode("import numpy"))
    forced = SamplingParams(max_tokens=1, logit_bias={ids[at]: 100.0})
    assert llm.tokenizer.decode(ids[:at]) == "import numpy"
    assert (
        llm.generate("import numpy", forced)[0].text
        == llm.tokenizer.decode(ids[: at + 1])[len("import numpy") :]
        == " as"
    )


def test_an_abandoned_stream_gives_its_pages_back(llm):
    before = llm._engine.pages.free
    stream = llm.stream("import ", SamplingParams(max_tokens=30))
    next(stream)
    stream.close()
    assert llm._engine.pages.free == before
    assert llm.generate("import ", SamplingParams(max_tokens=2))


def test_logits_are_fp32_and_predict_the_text(llm, heldout):
    ids = llm.tokenizer.encode(heldout)[:200]
    logits = llm.logits(ids)
    assert logits.dtype == torch.float32
    assert logits.shape == (200, 4096)
    right = (logits[:-1].argmax(-1) == torch.tensor(ids[1:])).float().mean().item()
    assert right > 0.2, "one token in 4096 would be chance"
    assert llm.tokenizer.decode(ids) == heldout[: len(llm.tokenizer.decode(ids))]


def test_wrong_ids_and_empty_texts_are_refused(llm):
    for ids in ([], [4096], [-1], [3, 1 << 40]):
        with pytest.raises(UserError):
            llm.logits(ids)


def test_what_cannot_be_opened_says_why(demo):
    with pytest.raises(UserError, match="mode"):
        LLM(demo, mode="quick")
    with pytest.raises(UserError, match="no plan no-such-plan"):
        LLM(demo, plan="no-such-plan")
    with pytest.raises(UserError, match="KV format"):
        LLM(demo, kv_format="f8")


def test_the_package_offers_what_it_says():
    assert set(hybrid.__all__) == {"LLM", "Completion", "Grammar", "SamplingParams", "TokenLogprob"}
    with pytest.raises(AttributeError):
        _ = hybrid.LLMs
