"""Chats as openai's client has them, unmodified."""

import json
from typing import Literal

import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

TALK = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "def add("}]


def ask(client, **options):
    return client.chat.completions.create(**{"model": "demo", "messages": TALK, "max_tokens": 12, **options})


def test_an_answer_has_the_form_of_openais(client):
    answer = ask(client, temperature=0)
    [choice] = answer.choices
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.system_fingerprint.startswith("fp_")


def test_the_prompt_is_what_tokenize_says(client, http):
    told = http.post("/tokenize", json={"messages": TALK}).json()
    assert told["count"] == len(told["tokens"]) == ask(client, max_tokens=1).usage.prompt_tokens
    assert "def add(" in http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]


def test_a_stream_gives_the_text_of_the_answer(client):
    whole = ask(client, temperature=0).choices[0].message.content
    chunks = list(ask(client, temperature=0, stream=True))
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert "".join(choice.delta.content for choice in middle) == whole
    assert last.finish_reason == "length" and last.delta.content is None
    assert {choice.finish_reason for choice in [first, *middle]} == {None}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_where_it_is_asked_for(client):
    *chunks, last = ask(client, stream=True, n=2, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == 24
    assert last.usage.prompt_tokens == ask(client, max_tokens=1).usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_choices_of_a_stream_are_told_apart(client):
    texts, ends = {}, []
    for chunk in ask(client, stream=True, n=3, seed=5, temperature=1.5):
        [choice] = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        ends += [choice.index] if choice.finish_reason else []
    whole = ask(client, n=3, seed=5, temperature=1.5)
    assert sorted(ends) == [0, 1, 2]
    assert [texts[index] for index in range(3)] == [choice.message.content for choice in whole.choices]
    assert len(set(texts.values())) > 1


def test_a_seed_repeats_an_answer(client):
    def answer(seed):
        return ask(client, seed=seed, temperature=1.2).choices[0].message.content

    assert answer(11) == answer(11)
    assert answer(-11) == answer(-11)
    assert len({answer(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client, stream):
    free = ask(client, temperature=0, max_tokens=40).choices[0].message.content
    stop = free[12:16]
    options = {"temperature": 0, "max_tokens": 40, "stop": ["nowhere at all", stop]}
    if stream:
        chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **options)]
        text, reason = "".join(choice.delta.content or "" for choice in chunks), chunks[-1].finish_reason
    else:
        [choice] = ask(client, **options).choices
        text, reason = choice.message.content, choice.finish_reason
    assert text == free[: free.index(stop)]
    assert reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_told_token_by_token(client, stream):
    options = {"temperature": 0, "logprobs": True, "top_logprobs": 3}
    if stream:
        told = [token for c in ask(client, stream=True, **options) for token in _logprobs(c.choices[0])]
    else:
        told = ask(client, **options).choices[0].logprobs.content
    assert len(told) == 12
    for token in told:
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert token.token == token.top_logprobs[0].token and token.logprob <= 0
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token
    text = ask(client, temperature=0).choices[0].message.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == text


def _logprobs(choice):
    return choice.logprobs.content if choice.logprobs else []


def test_an_answer_obeys_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["add", "sub"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema, "strict": True}}
    [choice] = ask(client, response_format=form, max_tokens=60, seed=2).choices
    answer = json.loads(choice.message.content)
    assert answer["name"] in ("add", "sub") and 0 <= answer["count"] <= 99
    assert choice.finish_reason == "stop"


class Call(BaseModel):
    """What `parse` of openai's client asks for, and gives back."""

    name: Literal["add", "sub"]
    count: Literal[1, 2, 3]


def test_openais_helpers_parse_and_accumulate(client):
    talk = {"model": "demo", "messages": TALK, "max_tokens": 200, "temperature": 0}
    parsed = client.chat.completions.parse(**talk, response_format=Call).choices[0].message.parsed
    assert isinstance(parsed, Call)
    with client.chat.completions.stream(**talk, response_format=Call) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message
    assert "".join(pieces) == final.content and final.parsed == parsed


def test_an_answer_obeys_a_regular_expression(client):
    [choice] = ask(client, extra_body={"regex": "(yes|no), [0-9]{3}"}, seed=1).choices
    assert choice.message.content[-5:-3] == ", " and choice.message.content[-3:].isdecimal()


def test_fields_that_change_nothing_are_taken(client):
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "modalities": ["text"],
        "stream_options": None,
        "temperature": None,
        "extra_body": {"top_k": -1, "function_call": None},
    }
    assert ask(client, **harmless).choices


def test_a_conversation_that_begins_alike_is_read_from_pages(client):
    talk = [{"role": "user", "content": "def walk(tree):\n    " * 12}]
    ask(client, messages=talk, max_tokens=1)
    again = ask(client, messages=[*talk, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}])
    details = again.usage.prompt_tokens_details
    assert 16 <= details.cached_tokens < again.usage.prompt_tokens


def test_langchain_talks_to_it(server):
    chat = ChatOpenAI(model="demo", base_url=f"{server.url}/v1", api_key="any", max_tokens=8, max_retries=0)
    answer = chat.invoke("def main():")
    assert answer.content and answer.usage_metadata["output_tokens"] == 8
    assert "".join(chunk.content for chunk in chat.stream("def main():"))
