"""Texts as openai's client has them continued, and what stands beside: models, tokens, health."""

import pytest


def complete(client, prompt="def parse_args(", **options):
    return client.completions.create(**{"model": "demo", "prompt": prompt, "max_tokens": 10, **options})


def test_a_text_is_continued(client):
    answer = complete(client, temperature=0)
    [choice] = answer.choices
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert choice.text and choice.finish_reason == "length" and choice.logprobs is None
    assert answer.usage.completion_tokens == 10
    assert complete(client, max_tokens=None).usage.completion_tokens == 16


def test_prompts_may_be_texts_or_token_ids(client, http):
    texts = ["def parse_args(", "import ", "class "]
    ids = [http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    alone = [complete(client, text, temperature=0).choices[0].text for text in texts]
    together = complete(client, texts, temperature=0)
    assert [choice.text for choice in together.choices] == alone
    assert [choice.text for choice in complete(client, ids, temperature=0).choices] == alone
    assert complete(client, ids[0], temperature=0).choices[0].text == alone[0]
    assert together.usage.prompt_tokens == sum(map(len, ids))


def test_choices_are_those_of_each_prompt_in_order(client):
    answer = complete(client, ["def a(", "import "], n=2, temperature=0)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert answer.usage.prompt_tokens == complete(client, ["def a(", "import "], max_tokens=1).usage.prompt_tokens


def test_a_stream_gives_the_same_texts(client):
    whole = [choice.text for choice in complete(client, ["def a(", "import "], temperature=0).choices]
    texts, reasons = ["", ""], [[], []]
    for chunk in complete(client, ["def a(", "import "], temperature=0, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index].append(choice.finish_reason)
    assert texts == whole
    assert all(ended == [None] * (len(ended) - 1) + ["length"] for ended in reasons)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt(client, stream):
    plain = complete(client, temperature=0).choices[0].text
    answer = complete(client, temperature=0, echo=True, stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == "def parse_args(" + plain


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_older_form(client, stream):
    answer = complete(client, temperature=0, logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    told = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in told for token in part.tokens]
    offsets = [offset for part in told for offset in part.text_offset]
    text = "".join(choice.text for choice in choices)
    assert len(tokens) == 10 and "".join(tokens) == text
    assert offsets == [len("".join(tokens[:at])) for at in range(10)]
    for part in told:
        for token, logprob, likely in zip(part.tokens, part.token_logprobs, part.top_logprobs, strict=True):
            assert likely[token] == logprob == max(likely.values())
            assert len(likely) == 2


def test_the_token_that_was_taken_is_always_among_the_likely_ones(client):
    [choice] = complete(client, temperature=2, logprobs=1, seed=3, max_tokens=20).choices
    told = choice.logprobs
    assert all(token in likely for token, likely in zip(told.tokens, told.top_logprobs, strict=True))
    assert {len(likely) for likely in told.top_logprobs} <= {1, 2}


def test_sampling_fields_reach_the_sampler(client, http):
    [token] = http.post("/tokenize", json={"prompt": "print", "add_special_tokens": False}).json()["tokens"]
    biased = complete(client, temperature=0, logit_bias={str(token): 100}, max_tokens=3)
    assert biased.choices[0].text.replace(" ", "") == "print" * 3
    free = complete(client, temperature=0, max_tokens=40).choices[0].text
    options = {"temperature": 0, "max_tokens": 40}
    assert complete(client, presence_penalty=2, **options).choices[0].text != free
    assert complete(client, frequency_penalty=2, **options).choices[0].text != free
    assert complete(client, extra_body={"repetition_penalty": 1.8}, **options).choices[0].text != free
    for narrow in ({"top_p": 0}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert complete(client, temperature=1.5, max_tokens=40, **narrow).choices[0].text == free


def test_a_text_ends_where_the_context_ends(client, server):
    context = server.service.engine.context
    answer = complete(client, [5] * (context - 3), max_tokens=50, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_models_are_listed_under_each_name(client, server):
    models = client.models.list().data
    assert [model.id for model in models] == ["demo", "gpt-of-ours"]
    assert client.models.retrieve("gpt-of-ours").max_model_len == server.service.engine.context
    assert complete(client, model="gpt-of-ours").model == "gpt-of-ours"


def test_text_comes_back_from_its_tokens(http):
    text = "def f(ä, b):\n\treturn '€'"
    told = http.post("/tokenize", json={"model": "demo", "prompt": text}).json()
    assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}


def test_health_says_ok(http):
    answer = http.get("/health")
    assert answer.status_code == 200 and answer.json() == {"status": "ok", "message": None}


def test_the_description_has_every_endpoint(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize", "/health"):
        [operation] = paths[path].values()
        assert "200" in operation["responses"] and "422" not in operation["responses"]
