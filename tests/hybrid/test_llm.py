"""The engine as a Python object, on the shipped model."""

import pytest
import torch

import hybrid
from hybrid import LLM, SamplingParams
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
