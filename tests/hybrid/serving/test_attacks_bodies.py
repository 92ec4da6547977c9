"""Bodies that mean no good: whatever is sent is answered with an error object of 4xx, and the server lives."""

import itertools
import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POSTS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
GOOD = {
    "/v1/completions": {"model": "demo", "prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}


def alive(http):
    assert http.get("/health").json()["status"] == "ok"
    assert http.post("/v1/completions", json=GOOD["/v1/completions"]).status_code == 200


def send(http, path, content):
    return http.post(path, content=content, headers={"Content-Type": "application/json"})


def refused(answer, statuses=range(400, 500)):
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], error
    assert len(answer.content) < 20_000, "an error that echoes what was sent"
    return error


NO_JSON = [
    b"{",
    b"}",
    b"nul",
    b"\x00",
    b'{"model": "demo", "prompt": "a"',
    b'{"model": "demo" "prompt": "a"}',
    b"{'model': 'demo'}",
    b'{"model": "demo", "prompt": "a",}',
    b'{"model": "demo", "prompt": "a"} trailing',
    b'{"a": "\t"}',
    b'{"a": "\xff\xfe"}',
    b'{"a": "\xed\xa0\x80"}',
    '{"model": "demo", "prompt": "a"}'.encode("utf-16"),
    b"\xef\xbb\xbf{",
    b'"\\u12"',
    b'"\\x41"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 63 + b"]" * 63,
    b"-",
    b"1" * 100_000,
    b"1e999999999",
    b"[]",
    b"null",
    b'"text"',
    b"0",
    b"--boundary\r\n",
]


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json_object_is_refused(http, path):
    for body in NO_JSON:
        refused(send(http, path, body))
    alive(http)


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400, "9" * 5000, "-1", "1.5"]
NUMERIC = ["temperature", "top_p", "max_tokens", "n", "seed", "top_k", "min_p", "presence_penalty", "logprobs"]


@pytest.mark.parametrize("field", NUMERIC)
def test_numbers_that_make_no_sense_are_refused_or_mean_what_they_say(http, field):
    for number, path in itertools.product(NUMBERS, POSTS[:2]):
        text = json.dumps({**GOOD[path], field: "@"}).replace('"@"', number)
        answer = send(http, path, text)
        if answer.status_code != 200 or number[-1].isalpha():
            refused(answer, range(400, 430))


WRONG = [
    None,
    True,
    0,
    -1,
    1e300,
    "",
    "x",
    [],
    ["x"],
    [None],
    [[]],
    {},
    {"x": 1},
    [[1, [2]]],
    "\x00",
    "\ud800",
    "𐍈" * 99,
]


@pytest.mark.parametrize("path", POSTS)
def test_values_of_a_wrong_type_are_refused_field_by_field(http, path):
    fields = http.get("/openapi.json").json()["components"]["schemas"]
    name = {"/v1/completions": "CompletionRequest", "/v1/chat/completions": "ChatRequest"}.get(path)
    names = fields[name]["properties"] if name in fields else GOOD[path]
    assert len(names) >= 1
    for field in names:
        for value in WRONG if "max" not in field else WRONG[1:]:
            answer = send(http, path, json.dumps({**GOOD[path], field: value}))
            if answer.status_code != 200:
                refused(answer, range(400, 430))
    alive(http)


@pytest.mark.parametrize("text", ["\ud800", "\udfff\ud800", "a\ud83d"])
def test_lone_surrogates_are_refused_not_computed(http, text):
    for path, body in {
        "/v1/completions": {"model": "demo", "prompt": text},
        "/v1/chat/completions": {"model": "demo", "messages": [{"role": "user", "content": text}]},
        "/tokenize": {"prompt": text},
    }.items():
        content = json.dumps(body).encode()
        refused(http.post(path, content=content, headers={"Content-Type": "application/json"}), [400])
    refused(
        http.post(
            "/v1/completions",
            content=json.dumps({"model": text, "prompt": "a"}),
            headers={"Content-Type": "application/json"},
        )
    )
    refused(
        http.post(
            "/v1/completions",
            content=json.dumps({**GOOD["/v1/completions"], text: 1}),
            headers={"Content-Type": "application/json"},
        )
    )


ODD = ["", "\x00", "\x00" * 99, "\r\n\r\n", "<s></s>" * 20, "﷽" * 50, "e" + "\u0301" * 99, "\U0010ffff"]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_are_texts(http, text):
    for path in POSTS[:3]:
        field = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
        answer = http.post(path, json={**GOOD[path], **field})
        assert answer.status_code == 200, answer.text
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).status_code == 200


def test_a_key_that_is_there_twice_counts_once_as_the_last(http):
    text = '{"model": "demo", "prompt": "a", "ignore_eos": true, "max_tokens": 3, "max_tokens": 2}'
    assert send(http, "/v1/completions", text).json()["usage"]["completion_tokens"] == 2


def test_more_than_there_is_room_for_is_refused(http, server):
    limit, good = server.settings.limits.body_bytes, GOOD["/v1/completions"]
    refused(http.post("/v1/completions", json={**good, "prompt": "x" * limit}), [413])
    long = [{"role": "user", "content": " b" * (limit // 2 - 100)}]
    for path, body in {
        "/v1/completions": {"prompt": "a" * (limit - 100)},
        "/v1/chat/completions": {"messages": long},
    }.items():
        assert refused(http.post(path, json={"model": "demo", **body}), [400])["code"] == "context_length_exceeded"
    for field in (
        {"prompt": [1] * 1_000_000},
        {"prompt": ["a"] * 100_000},
        {"prompt": [[]] * 100_000},
        {"f" * 1_000_000: 1},
        {f"f{i}": 1 for i in range(20_000)},
        {"stop": ["x"] * 100_000},
        {"stop": "x" * 1_000_000},
        {"n": 10**9},
        {"logit_bias": {str(i): 1.0 for i in range(100_000)}},
    ):
        refused(http.post("/v1/completions", json={**good, **field}), [400])
    messages = [{"role": "user", "content": ""}] * 60_000
    refused(http.post("/v1/chat/completions", json={"model": "demo", "messages": messages}), [400])
    refused(http.post("/v1/completions", json={"model": "m" * 1_000_000, "prompt": "a"}), [404])
    for token_id in (10**9, -1, 1 << 80):
        refused(http.post("/detokenize", json={"tokens": [token_id]}), [400])
    alive(http)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)


FIELDS = [*NUMERIC, "model", "prompt", "messages", "tokens", "stop", "stream", "response_format", "regex", "logit_bias"]
QUIETLY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIETLY
@given(st.sampled_from(POSTS), st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3))
def test_any_json_is_answered_as_the_protocol_says(http, path, changed):
    body = {**GOOD[path], **changed, **({"max_tokens": 1} if "v1" in path else {})}
    answer = send(http, path, json.dumps(body))
    if answer.status_code != 200:
        refused(answer, range(400, 430))


@QUIETLY
@given(st.sampled_from(POSTS), st.binary(max_size=300))
def test_any_bytes_are_answered(http, path, body):
    refused(send(http, path, body), range(400, 430))


def test_methods_and_paths_that_are_not_there(http):
    for method in ("PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "X" * 500):
        refused(http.request(method, "/v1/completions"), [404, 405])
    for path in (
        "/v1",
        "/v1/completions/",
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/%00",
        "/\ufeff",
        "/v1//models",
        "/static/../../etc/passwd",
        "/static/%2e%2e/%2e%2e/app.py",
        "/" + "a" * 5000,
    ):
        refused(http.get(path), [404])
    assert httpx.get(f"{http.base_url}/health").status_code == 200
