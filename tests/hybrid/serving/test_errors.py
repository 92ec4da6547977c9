"""What clients are told of their mistakes: the right exception of openai's, and the field."""

import openai
import pytest

from hybrid.serving.validation import UNSUPPORTED, invalid_request

TALK = [{"role": "user", "content": "def f("}]
WRONG = [
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": -0.5}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2.5}, "max_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 11}, "n", None),
    ({"seed": 2**64}, "seed", "invalid_value"),
    ({"stop": [""]}, "stop[0]", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"stop": ["a"] * 9}, "stop", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", None),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", None),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [*TALK, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content[0].type", None),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
    ({"messages": [{"role": "user", "content": "a " * 600}]}, "messages", "context_length_exceeded"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_object"}, "extra_body": {"regex": "a"}}, "regex", None),
    ({"extra_body": {"regex": "(("}}, "regex", None),
    ({"extra_body": {"grammar": "start: nothing"}}, "grammar", None),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}},
        "response_format",
        None,
    ),
    ({"extra_body": {"min_tokens": 3}}, "min_tokens", "unsupported_parameter"),
    ({"extra_body": {"nonsense": 3}}, "nonsense", "unknown_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"modalities": ["audio"]}, "modalities", None),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
]


def ask(client, **options):
    return client.chat.completions.create(**{"model": "demo", "messages": TALK, "max_tokens": 1, **options})


@pytest.mark.parametrize(("options", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(client, options, param, code):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    error = refused.value
    assert error.type == "invalid_request_error" and error.param == param
    assert code is None or error.code == code
    assert len(error.message) < 1500


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, 10**30]}, "prompt"),
        ({"prompt": [1, -3]}, "prompt[1]"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"prompt": [5] * 512}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_completion_is_named(http, options, param):
    answer = http.post("/v1/completions", json={"model": "demo", "prompt": "x", "max_tokens": 1, **options})
    if options == {"prompt": ""}:  # the token that opens every text
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param is None or error["param"] == param


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, model="gpt-9")
    assert refused.value.code == "model_not_found" and "'demo'" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("PUT", "/v1/completions", 405), ("DELETE", "/health", 405), ("GET", "/v1//", 404)],
)
def test_paths_and_methods_that_are_not_there(http, method, path, status):
    answer = http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"\xff"',
        b'{"model": "\xff\xfe"}',
        b'{"model": "demo", "prompt": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"model": "demo", "prompt": "x", "temperature": NaN}',
        b'{"model": "demo", "prompt": "x", "temperature": 1e999}',
        b'{"model": "demo", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_bodies_that_are_no_request(http, body):
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_json_that_is_not_called_json_is_told_so(http):
    answer = http.post("/tokenize", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]


def test_reasons_are_given_for_what_is_known_and_not_supported():
    for name, reason in UNSUPPORTED.items():
        error = invalid_request([{"type": "extra_forbidden", "loc": ("body", name), "msg": "no"}], {name: 1})
        assert reason in error.message and error.param == name


def test_tokens_need_one_of_prompt_and_messages(http):
    assert http.post("/tokenize", json={}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "x", "messages": TALK}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "x", "model": "gpt-9"}).status_code == 404
    assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert http.post("/detokenize", json={"tokens": [10**30]}).json()["error"]["param"] == "tokens"
