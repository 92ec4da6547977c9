"""Limits of a request, on the plain ASGI application: what is refused is never handed on."""

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.serving.errors import ApiError
from hybrid.serving.limits import RequestLimits, check_json
from hybrid.serving.settings import Limits
from profiler.artifacts import UserError

JSON = [(b"content-type", b"application/json")]


def ask(parts, headers=(), method="POST", limits=None, version="1.1"):
    """Send a body in parts; the status, the error's code, and what the application read (None: it was not asked)."""
    read, sent = [], []

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        read.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if messages:
        messages[-1]["more_body"] = False
    pending = iter(messages)

    async def receive():
        return next(pending, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "http_version": version,
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [*JSON, *headers],
    }
    asyncio.run(RequestLimits(app, limits or Limits(body_bytes=2048))(scope, receive, send))
    status = sent[0]["status"] if sent else None
    code = json.loads(sent[1]["body"]).get("error", {}).get("code") if sent else None
    return status, code, read[0] if read else None


def test_a_body_is_handed_on_as_it_came():
    assert ask([b'{"a":', b"[1]", b"}"]) == (200, None, b'{"a":[1]}')
    assert ask([b"[]"] + [b""] * 50) == (200, None, b"[]")


def test_a_body_is_measured_whatever_its_length_says():
    large = [b" " * 1000] * 3
    assert ask(large)[:2] == (413, "request_too_large")
    assert ask(large, [(b"content-length", b"2")])[:2] == (413, "request_too_large")
    assert ask([], [(b"content-length", b"2049")])[:2] == (413, "request_too_large")  # before it is sent
    assert ask([], [(b"content-length", b"9" * 4000)])[:2] == (413, "request_too_large")
    assert ask([b"[" + b" " * 2046 + b"]"], [(b"content-length", b"2048")])[0] == 200


def test_a_client_that_leaves_while_it_sends_is_not_answered():
    assert ask([]) == (None, None, None)


def test_both_kinds_of_length_are_refused():
    headers = [(b"content-length", b"2"), (b"transfer-encoding", b"chunked")]
    assert ask([b"[]"], headers)[0] == 400


def test_heads_have_a_size():
    assert ask([b"[]"], [(b"x", b"y")] * 99)[0] == 200
    assert ask([b"[]"], [(b"x", b"y")] * 100)[:2] == (431, "too_many_headers")
    assert ask([b"[]"], [(b"x", b"y" * 40000)])[:2] == (431, "head_too_large")
    assert ask([b"[]"], version="2")[0] == 505


def test_requests_without_a_body_are_not_read():
    assert ask([b"x" * 9999], method="GET")[0] == 200
    assert ask([b""]) == (200, None, b"")


@pytest.mark.parametrize(
    "body", [b'"\xff"', b'"\xed\xa0\x80"', "[]".encode("utf-16"), b'"\xc0\xaf"', b"\xef\xbb\xbf\xff"]
)
def test_what_is_not_utf8_is_refused(body):
    assert ask([body])[1] in ("not_utf8",)


def test_depth_is_that_of_lists_and_objects_and_not_of_texts():
    assert ask([b"[" * 64 + b"]" * 64])[0] == 200
    assert ask([b"[" * 65])[:2] == (400, "too_deep")
    assert ask([b'{"a":' * 65])[:2] == (400, "too_deep")
    assert ask([b"[]," * 500])[0] == 200
    assert ask([json.dumps(["[" * 500, '"[' * 100, "\\" + "{" * 99]).encode()])[0] == 200
    assert ask([b'"' + b"[" * 500])[0] == 200  # no JSON, which others say
    assert ask([b'["\\"", ' + b"[" * 65])[:2] == (400, "too_deep")


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(alphabet='[]{}"\\\\aä\n', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=60,
)


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(values, st.booleans())
@example([[["]]]"]], [[[[["\\"]]]]]], True)
def test_depth_is_measured_as_a_parser_would(value, ascii_only):
    text, depth = json.dumps(value, ensure_ascii=ascii_only).encode(), depth_of(value)
    check_json(text, depth)
    if depth:
        with pytest.raises(ApiError):
            check_json(text, depth - 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("body_bytes", 10), ("json_depth", 1), ("connections", 0), ("head_seconds", 0), ("stall_seconds", float("nan"))],
)
def test_limits_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        Limits(**{name: value})
