"""Grammars, schemas, expressions and templates that explode: refused or held, and others are computed meanwhile."""

import contextlib
import itertools
import json
import re
import shutil
import threading

import httpx
import pytest

from hybrid.stages.opening import open_engine

PATIENCE = 120.0
ASK = {"model": "demo", "prompt": "a", "max_tokens": 8, "temperature": 1.0, "seed": 3}
EXPRESSIONS = [
    "a{1000000}",
    "(a{1000}){1000}",
    "((a{100}){100}){100}",
    "(a+)+$",
    ".*" * 200,
    "(?:(?:a?){50}){50}a{2500}",
    ".*a.{300}",
    "(" * 10_000 + ")" * 10_000,
    "(.{0,1000}x){50}",
    "(?=a)b",
    "\\1",
    "\x00",
    "[",
    "a" * 70_000,
    "\\p{L}" * 3000,
    "(a&b)",
]
RULES = [
    'start: a\na: a a | "x"',
    "start: start",
    "start: /(a{1000}){1000}/",
    "start: " + '("a" | ' * 3000 + '"b"' + ")" * 3000,
    "start: " + " ".join(f"r{i}" for i in range(2000)) + "".join(f'\nr{i}: "a"*' for i in range(2000)),
    'start: a*\na: b*\nb: c*\nc: "x"?',
    'start: ((("a"*)*){0,100000})~3',
    "no rule at all",
    "%import common.INT\nstart: INT",
    'start: %json {"$ref": "file:///etc/passwd"}',
    "start: S\nS: " + "|".join(f'"{i}"' for i in range(6000)),
]


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [{"type": "object", "properties": {"a": schema}}, {"type": "array", "items": schema}]}
    return schema


SCHEMAS = [
    nested(7),
    {"$ref": "#"},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"$ref": "http://127.0.0.1:1/schema"},
    {"$ref": "file:///etc/passwd"},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "pattern": "^((a{100}){100}){100}$"},
    {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"type": "integer"}}} for i in range(8)]} for j in range(8)]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
    {"enum": [f"v{i}" * 10 for i in range(2000)]},
    {"type": "integer", "minimum": -1e300, "maximum": 1e300},
    {"type": "number", "multipleOf": 1e-300},
    {"type": "nothing"},
    {"properties": {"\ud800": {}}},
    {"patternProperties": {"(": {}}},
]


def forms():
    yield from ({"regex": text} for text in EXPRESSIONS)
    yield from ({"grammar": text} for text in RULES)
    for schema in SCHEMAS:
        yield {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def test_forms_that_explode_are_met_or_refused_and_the_server_goes_on(http, server, settled):
    for form in forms():
        content = json.dumps({**ASK, **form})
        answer = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        told = (answer.status_code, answer.text[:300], str(form)[:100])
        assert answer.status_code in (200, 400), told
        if answer.status_code == 400:
            assert answer.json()["error"]["message"] and len(answer.text) < 5000, told
    load = settled(server.service)
    assert load.running == load.waiting == 0 and server.service.health == "ok"


def test_others_are_computed_while_forms_explode(http, server):
    """Each of these takes the compiler a while, or each of its tokens; a plain stream beside them is never stopped."""
    stop, failed = threading.Event(), []

    def attack(number):
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            for at in itertools.count():
                if stop.is_set():
                    return
                form = {"regex": EXPRESSIONS[(at + number) % 8]}
                status = client.post("/v1/completions", json={**ASK, **form}).status_code
                if status not in (200, 400, 429):
                    failed.append(status)

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        body = {**ASK, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        texts = {http.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(texts) == 1 and not failed


@contextlib.contextmanager
def chatting(demo, tmp_path, serving, template):
    """A client of a server whose model has this chat template."""
    model = shutil.copytree(demo, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    with (
        open_engine(model, max_sequences=1, threads=1) as engine,
        serving(engine) as running,
        httpx.Client(base_url=running.url, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ lipsum.__globals__['os'].system('id') }}", "unsafe|undefined"),
        ("{{ self.__init__.__globals__ }}", "unsafe|undefined"),
        ("{{ messages.append(messages) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% import 'os' as os %}{{ os }}", "loader"),
        ("{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}", "unsafe"),
        ("{{ messages | map(attribute='__class__') | list }}{{ messages[0]['__class__'].x }}", "undefined|unsafe"),
        ("{{ 'x' * 10 ** 12 }}", "memory"),
        ("{{ raise_exception('x' * 100000) }}", "xxx"),
        ("{{ messages[0].content * 100000000 }}", "makes over|memory"),
    ],
)
def test_templates_that_mean_no_good_are_refused_and_the_server_lives(demo, tmp_path, serving, template, said):
    ask = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with chatting(demo, tmp_path, serving, template) as client:
        for path, body in (("/v1/chat/completions", ask), ("/tokenize", {"messages": ask["messages"]})):
            answer = client.post(path, json=body)
            assert answer.status_code == 400, answer.text[:300]
            assert re.search(said, answer.json()["error"]["message"]) and len(answer.text) < 5000
        assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json=ASK).status_code == 200


@pytest.mark.slow
def test_a_template_without_end_holds_up_nobody_else(demo, tmp_path, serving):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ask = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    with chatting(demo, tmp_path, serving, endless) as client:
        statuses = []
        chats = [
            threading.Thread(target=lambda: statuses.append(client.post("/v1/chat/completions", json=ask).status_code))
            for _ in range(3)
        ]
        for chat in chats:
            chat.start()
        assert client.get("/health").status_code == 200
        assert statuses == []  # all three are still at it
        for chat in chats:
            chat.join()
        assert statuses == [400] * 3


def test_deep_arguments_of_calls_are_refused_or_passed(demo, tmp_path, serving):
    with chatting(demo, tmp_path, serving, "{{ messages | tojson }}") as client:
        for depth in (10, 500, 990, 5000, 100_000):
            call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * depth + "]" * depth}}
            messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
            answer = client.post("/tokenize", json={"messages": messages})
            assert answer.status_code in (200, 400), answer.text[:300]
