"""Conversations as a model's chat template shows them to it."""

import shutil

import httpx
import openai
import pytest

from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack

TEMPLATE = """{% for m in messages %}{% if m.role == 'king' or m.content == 'forbidden' %}
{{ raise_exception('no ' + m.content) }}{% endif %}
[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls or [] %}
<{{ call.function.name }} {{ call.function.arguments.x }}>{% endfor %}{% endfor %}
{% if add_generation_prompt %}[answer]{% endif %}"""
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 5}'}}
TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "6", "tool_call_id": "1"},
]


@pytest.fixture(scope="module")
def templated(llama_checkpoint, serving, tmp_path_factory):
    """A server of a tiny model with a chat template, and with settings that its makers recommend."""
    folder = tmp_path_factory.mktemp("templated")
    checkpoint = shutil.copytree(llama_checkpoint, folder / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.0, "top_k": 7, "top_p": "x", "min_p": 9}')
    model = pack(checkpoint, folder / "model").destination
    with open_engine(model, max_sequences=2, threads=1) as engine, serving(engine) as running:
        yield running


def test_the_model_is_shown_what_its_template_writes(templated):
    with httpx.Client(base_url=templated.url, timeout=120) as http:
        ids = http.post("/tokenize", json={"messages": TALK}).json()["tokens"]
        text = http.post("/detokenize", json={"tokens": ids}).json()["prompt"]
    assert "".join(text.split()) == "[system]Bebrief.[user]ab[assistant]<f5>[tool]6[answer]"


def test_what_the_template_refuses_is_refused_in_its_words(templated):
    with templated.client() as client, pytest.raises(openai.BadRequestError, match="no forbidden") as refused:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "forbidden"}])
    assert refused.value.param == "messages"


def test_what_the_makers_recommend_is_the_default(templated):
    with templated.client() as client:

        def answer(**options):
            talk = [{"role": "user", "content": "def f("}]
            return client.chat.completions.create(model="demo", messages=talk, max_tokens=12, **options)

        greedy = answer(temperature=0).choices[0].message.content
        assert {answer().choices[0].message.content for _ in range(3)} == {greedy}
        assert len({answer(temperature=1.5, seed=s).choices[0].message.content for s in range(4)}) > 1


def test_calls_of_tools_need_a_template(client):
    with pytest.raises(openai.BadRequestError, match="tool_calls need a chat template"):
        client.chat.completions.create(model="demo", messages=TALK)
