"""Chat templates against transformers' `apply_chat_template`, and templates that mean no good."""

import json
import shutil

import pytest
import tokenizers
import transformers
from tokenizers import models

from hybrid.chat_template import load_chat_template
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BLOCKS = """{%- for message in messages %}
    {%- if message.role == "skip" %}
        {%- continue %}
    {%- endif %}
    {% generation %}
    {{ message | tojson }}
    {{ message.content | tojson(indent=2) }}
    {% endgeneration %}
  {# a comment on a line of its own #}
    {% if loop.index0 > 3 %}
    {% break %}
    {% endif %}
{%- endfor %}
{% if tools %}{{ tools | tojson }}{% endif %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}{{ namespace(a=1).a }}{{ unk_token is defined }}{{ pad_token is defined }}{{ strftime_now("%Y")[:2] }}"""
CHATS = [
    [{"role": "user", "content": "Hello <b> & 'you'"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " a < b? \n"},
        {"role": "assistant", "content": "ä é 🎈"},
        {"role": "user", "content": "more"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def model(llama_checkpoint, tmp_path):
    """A checkpoint's folder to put templates into."""
    return shutil.copytree(llama_checkpoint, tmp_path / "model")


def put(model, template, place="tokenizer_config.json"):
    if place.endswith(".jinja"):
        (model / place).write_text(template)
        return
    path = model / place
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, "chat_template": template}))


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("template", [LLAMA_2, BLOCKS])
def test_the_text_is_the_one_that_transformers_makes(model, template, messages, prompt):
    put(model, template)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.BPE()), **special)
    tools = TOOLS if template == BLOCKS and prompt else None
    expected = reference.apply_chat_template(
        messages, tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    loaded = load_chat_template(model)
    assert loaded is not None
    assert loaded.render(messages, add_generation_prompt=prompt, tools=tools) == expected


def test_special_tokens_of_a_template_become_tokens(model):
    put(model, LLAMA_2)
    loaded, tokenizer = load_chat_template(model), load_tokenizer(model)
    ids = tokenizer.encode_chat(loaded.render([*CHATS[1][:3]]))
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, next(iter(tokenizer.eos_ids)))
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.bos_id not in tokenizer.encode("<s>", add_bos=False)


def test_named_templates_and_their_places_in_order(model):
    assert load_chat_template(model) is None
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    put(model, named)
    assert load_chat_template(model).render([]) == "plain"
    assert load_chat_template(model).render([], tools=TOOLS) == "tools"
    put(model, "from json", "chat_template.json")
    assert load_chat_template(model).render([]) == "from json"
    put(model, "from jinja", "chat_template.jinja")
    assert load_chat_template(model).render([]) == "from jinja"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages[0].content.missing.deeper }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "makes over"),
    ],
)
def test_what_a_template_may_not_do_is_an_error(model, template, said):
    put(model, template)
    with pytest.raises(UserError, match=said):
        load_chat_template(model).render(CHATS[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{% if %}", "cannot be read"),
        (7, "should be a text"),
        ([{"name": "tool_use", "template": ""}], "no template named 'default'"),
        ([{"name": "default"}], "should be a text"),
        ("x" * (2 << 20), "1 MiB"),
    ],
)
def test_damaged_templates_name_their_file(model, value, said):
    put(model, value)
    with pytest.raises(UserError, match=said) as caught:
        load_chat_template(model)
    assert "tokenizer_config.json" in str(caught.value)


def test_a_template_file_of_its_own_is_checked_too(model):
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load_chat_template(model)
    (model / "chat_template.jinja").write_text("x" * (2 << 20))
    with pytest.raises(UserError, match="at most 1 MiB"):
        load_chat_template(model)
