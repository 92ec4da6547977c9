"""A conversation is kept, cut where the context ends, taken back and repeated."""

import pytest

from hybrid import LLM, SamplingParams
from hybrid.chat_prompt import ChatFormat
from hybrid.chat_session import ChatSession
from profiler.artifacts import UserError


@pytest.fixture(scope="module")
def llm(demo):
    with LLM(demo, max_sequences=1, context=192) as llm:
        yield llm


@pytest.fixture
def open_session(llm):
    def make(system="", **params):
        options = {"max_tokens": 12, "ignore_eos": True, **params}
        return ChatSession(llm, ChatFormat.of(llm.directory), SamplingParams(**options), system)

    return make


def ask(session, question, **options):
    return "".join(session.ask(question, **options))


def test_the_model_sees_the_whole_conversation_and_little_is_computed_twice(llm, open_session):
    session = open_session("Be brief.")
    first = ask(session, "def add(a, b):")
    assert session.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "def add(a, b):"},
        {"role": "assistant", "content": first.strip()},
    ]
    second = ask(session, "class Stack:")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2
    chat = ChatFormat.of(llm.directory)
    expected = chat.encode(llm.tokenizer, session.messages()[:-1])
    assert session.last.prompt_token_ids == expected
    figures = session.figures()
    assert figures["cached_tokens"] >= 16 > 0
    assert figures["prompt_tokens"] == len(expected)
    fresh = LLM(llm.directory, max_sequences=1, context=192)
    with fresh:
        params = SamplingParams(max_tokens=12, ignore_eos=True, stop=chat.stop)
        assert "".join(fresh.stream(expected, params)).strip() == second.strip()


def test_taking_back_and_asking_again(open_session):
    session = open_session(temperature=1.0, seed=4)
    assert session.take_back() is None
    first = ask(session, "import os")
    ask(session, "import re")
    assert session.take_back() == "import re"
    assert [turn["content"] for turn in session.turns] == ["import os", first.strip()]
    assert session.take_back() == "import os"
    assert session.turns == []
    again = open_session(temperature=1.0, seed=4)
    assert ask(again, "import os") == first, "the same questions have the same answers"
    assert again.take_back() == "import os"
    assert ask(again, "import os") != first, "and asked again another one"
    again.clear()
    assert (again.turns, again.figures()) == ([], {})


def test_the_oldest_turns_are_left_out_where_the_context_ends_and_room_for_several_is_made(llm, open_session):
    session = open_session("Be brief.", max_tokens=20)
    forgotten = []
    for number in range(14):
        ask(session, f"def function_{number}(a, b):")
        assert len(session.last.prompt_token_ids) + 20 <= llm.context
        shown = llm.tokenizer.decode(session.last.prompt_token_ids)
        assert "Be brief." in shown
        assert f"function_{number}" in shown
        forgotten.append(session.forgotten)
    assert forgotten[-1] > 0
    assert forgotten == sorted(forgotten)
    assert len(set(forgotten)) < len(forgotten) / 2, "the beginning stays as it is for several turns"
    assert len(session.turns) == 28, "what is saved is everything"
    for _ in range(14):
        session.take_back()
    assert (session.turns, session.forgotten) == ([], 0)


def test_a_message_that_does_not_fit_is_refused_and_nothing_changes(open_session):
    session = open_session()
    ask(session, "x = 1")
    before = session.turns
    with pytest.raises(UserError, match="--context"):
        ask(session, "def f(): pass\n" * 200)
    assert session.turns == before
    assert session.forgotten == 0
    assert ask(session, "y = 2")


def test_an_answer_is_cut_by_the_context_not_by_an_error(llm, open_session):
    session = open_session(max_tokens=1 << 30)
    ask(session, "for i in range(10):")
    last = session.last
    assert last.finish_reason in ("length", "stop")
    assert len(last.prompt_token_ids) + len(last.token_ids) <= llm.context


def test_a_stopped_answer_is_kept_as_far_as_it_came_and_one_that_never_began_is_not(llm, open_session):
    session = open_session(max_tokens=100)
    pieces = []

    def soon():
        return len(pieces) >= 3

    for piece in session.ask("class Queue:", soon):
        pieces.append(piece)
    assert session.last.finish_reason == "cancelled"
    assert 3 <= len(pieces) <= 5
    assert session.turns[-1]["content"] == "".join(pieces).strip()
    before = session.turns
    assert list(session.ask("class Queue:", lambda: True)) == []
    assert session.turns == before
    assert session.dropped == "class Queue:"
    assert session.last.first_token_seconds is None
    assert ask(session, "def f():")
    assert session.dropped is None
    assert llm._engine.load().running == 0
