"""What is sampled does not depend on who else is there: not where texts are put off for lack of pages either."""

import json

import pytest

from hybrid import LLM, Grammar, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 3, "maxItems": 4}
    },
    "required": ["names"],
    "additionalProperties": False,
}
FORMS = {
    "plain": SamplingParams(max_tokens=60, temperature=1.0, seed=5, n=4, logprobs=2, ignore_eos=True),
    "penalties": SamplingParams(
        max_tokens=60, temperature=0.8, seed=5, n=4, repetition_penalty=1.3, frequency_penalty=0.4, ignore_eos=True
    ),
    "grammar": SamplingParams(
        max_tokens=90, temperature=1.0, seed=5, n=4, grammar=Grammar("json_schema", json.dumps(SCHEMA))
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_was_put_off_is_the_one_it_would_have_been(demo, form):
    params, prompt = FORMS[form], "class Stack:\n    def push("
    with LLM(demo, context=112, max_sequences=4) as roomy:
        page_bytes = roomy._engine.load().page_bytes
        expected = roomy.generate(prompt, params)
        assert roomy._engine.load().preemptions == 0
    with LLM(demo, context=112, max_sequences=4, kv_memory=page_bytes * 8) as tight:
        found = tight.generate(prompt, params)
        assert tight._engine.load().preemptions > 0
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
        assert one.logprobs == other.logprobs
    if form == "grammar":
        for completion in found:
            if completion.finish_reason == "stop":
                assert 3 <= len(json.loads(completion.text)["names"]) <= 4
        assert any(completion.finish_reason == "stop" for completion in found)
