"""Messages to prompts: by the model's template, and plainly where it has none."""

import shutil

import pytest

from hybrid.chat_prompt import ChatFormat
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[answer]{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "a <s>"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "c"},
]


@pytest.fixture
def model(llama_checkpoint, tmp_path):
    """A checkpoint's folder without a template."""
    return shutil.copytree(llama_checkpoint, tmp_path / "model")


def test_a_template_is_used_and_opens_the_answer(model):
    (model / "chat_template.jinja").write_text(TEMPLATE)
    chat, tokenizer = ChatFormat.of(model), load_tokenizer(model)
    assert (chat.note, chat.stop) == (None, ())
    assert chat.render(CHAT) == "<s>[system]Be brief.[user]a <s>\nb[assistant][user]c[answer]"
    assert '"name": "f"' in chat.render(CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    ids = chat.encode(tokenizer, CHAT[3:])
    assert ids == tokenizer.encode_chat("<s>[user]c[answer]")
    assert ids.count(tokenizer.bos_id) == 1


@pytest.mark.parametrize(("known", "role"), [("", "system"), ("{# developer #}", "developer")])
def test_a_developer_is_the_system_where_the_template_does_not_know_the_word(model, known, role):
    (model / "chat_template.jinja").write_text(TEMPLATE + known)
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "c"}]
    assert ChatFormat.of(model).render(talk) == f"<s>[{role}]Be brief.[user]c[answer]"


def test_without_a_template_turns_are_plain_and_a_note_says_so(model):
    chat, tokenizer = ChatFormat.of(model), load_tokenizer(model)
    expected = "System:\nBe brief.\n\nUser:\na <s>\nb\n\nAssistant:\n\n\nUser:\nc\n\nAssistant:\n"
    assert chat.render(CHAT) == expected
    assert "chat_template.jinja" in chat.note
    assert "\nUser:" in chat.stop
    ids = chat.encode(tokenizer, CHAT)
    assert ids == tokenizer.encode(expected), "a user's `<s>` is text, the tokenizer's own opening is there"
    assert ids.count(tokenizer.bos_id) == 1


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "empty"),
        ([{"role": "wizard", "content": "x"}], r"messages\[0\]\.role is 'wizard'"),
        ([{"content": "x"}], r"messages\[0\]\.role is None"),
        ([CHAT[0], {"role": "user", "content": 3}], r"messages\[1\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is of type 'image_url'"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content"),
    ],
)
def test_messages_of_another_form_are_refused_by_place(model, messages, said):
    with pytest.raises(UserError, match=said):
        ChatFormat.of(model).render(messages)


def test_tools_need_a_template(model):
    with pytest.raises(UserError, match="tools need a chat template"):
        ChatFormat.of(model).render(CHAT, tools=[{"type": "function"}])


def test_a_damaged_template_is_refused_not_replaced(model):
    (model / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match="cannot be read"):
        ChatFormat.of(model)
