"""Texts as documents and windows: whatever they come as, the tokens are those of the whole text."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.stages import text_files
from hybrid.stages.shipped import CHECKPOINT
from hybrid.stages.text_files import TextFile, read_bytes
from hybrid.stages.texts import Corpus
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(CHECKPOINT)


@pytest.fixture
def folder(tmp_path):
    """A folder of texts with what should be left out of it."""
    root = tmp_path / "books"
    (root / "b" / ".git").mkdir(parents=True)
    (root / "b" / "two.txt").write_text("the second\n")
    (root / "a.txt").write_text("the first\n")
    (root / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth", "messages": 7}\n')
    (root / "binary").write_bytes(b"abc\0def")
    (root / "latin").write_bytes("größe".encode("latin-1"))
    (root / "empty.txt").write_text("")
    (root / "b" / ".git" / "config").write_text("hidden")
    return root


@pytest.fixture
def whole_text(tmp_path, heldout):
    """The held-out files as one text."""
    path = tmp_path / "heldout.txt"
    path.write_text(heldout, encoding="utf-8")
    return path


def cut(tokenizer, texts, context):
    """Each text in consecutive windows that fill the context, each opened as the tokenizer opens a text."""
    opening = tokenizer.encode("")
    room = context - len(opening)
    whole = [tokenizer.encode(text)[len(opening) :] for text in texts]
    return [opening + ids[at : at + room] for ids in whole for at in range(0, len(ids), room)]


def test_windows_are_those_of_the_texts_in_memory(tokenizer, tmp_path, heldout, whole_text):
    short = tmp_path / "short.txt"
    short.write_text("def f(x):\n    return x\n")
    corpus = Corpus.open([whole_text, short], tokenizer)
    for context in (17, 512):
        found = list(corpus.windows(context))
        assert [w.ids for w in found] == cut(tokenizer, [heldout, short.read_text()], context)
        assert [w.document for w in found] == [w.domain for w in found]
    assert corpus.domains == ("heldout.txt", "short.txt")
    assert corpus.bytes == whole_text.stat().st_size + short.stat().st_size


def test_folders_give_their_texts_by_name_and_say_what_is_left_out(tokenizer, folder):
    notes = []
    corpus = Corpus.open([folder], tokenizer, note=notes.append)
    assert [d.text for d in corpus.documents()] == ["the first\n", "the second\n", "third", "fourth"]
    assert [d.name for d in corpus.documents()][2:] == [f"{folder / 'c.jsonl'}, line {n}" for n in (1, 3)]
    assert len(notes) == 1
    assert "2 of 6 files" in notes[0]
    assert {w.document for w in corpus.windows(8)} == {0, 1, 2, 3}


@settings(deadline=None, max_examples=60)
@given(lines=st.lists(st.text(alphabet="aä€🎈 \n", max_size=30), max_size=12), piece=st.integers(4, 40))
def test_pieces_are_the_file_cut_between_characters_and_at_line_breaks(tmp_path_factory, lines, piece):
    path = tmp_path_factory.mktemp("pieces") / "text"
    data = "\n".join(lines).encode()
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece)
        found = list(read_bytes(TextFile(path, len(data), False)))
    assert b"".join(found) == data
    for part in found[:-1]:
        part.decode()
        assert part.endswith(b"\n") or b"\n" not in part[: piece - 4]
        assert len(part) <= 2 * piece


def test_a_text_in_pieces_has_the_tokens_of_the_whole_but_at_the_cuts(tokenizer, monkeypatch, heldout, whole_text):
    whole = [i for w in Corpus.open([whole_text], tokenizer).windows(512) for i in w.ids]
    monkeypatch.setattr(text_files, "PIECE_BYTES", 20_000)
    corpus = Corpus.open([whole_text], tokenizer)
    parts = [i for w in corpus.windows(512) for i in w.ids]
    assert 0 <= len(parts) - len(whole) <= 2 * (len(heldout.encode()) // 20_000 + 1)
    assert "".join(next(corpus.documents()).pieces()) == heldout


def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path, monkeypatch, whole_text):
    monkeypatch.setattr(text_files, "PIECE_BYTES", 1 << 16)
    peaks = []
    for copies in (1, 6):
        path = tmp_path / f"{copies}.txt"
        path.write_bytes(whole_text.read_bytes() * copies)
        corpus = Corpus.open([path], tokenizer)
        tracemalloc.start()
        for _ in corpus.windows(256):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 4 << 20


def test_a_number_of_tokens_is_shared_by_size(tokenizer, tmp_path, whole_text):
    (tmp_path / "large.txt").write_bytes(whole_text.read_bytes()[:90_000])
    (tmp_path / "small.txt").write_bytes(whole_text.read_bytes()[-30_000:])
    corpus = Corpus.open([tmp_path / "large.txt", tmp_path / "small.txt"], tokenizer)
    found = list(corpus.windows(128, 4000))
    by_domain = [sum(len(w.ids) for w in found if w.domain == d) for d in (0, 1)]
    assert 3996 <= sum(by_domain) <= 4000
    assert by_domain[0] == pytest.approx(3000, abs=4)
    every = sum(len(w.ids) for w in corpus.windows(128))
    assert sum(len(w.ids) for w in corpus.windows(128, 10**9)) == every
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("a few words")
    first = Corpus.open([tiny, tmp_path / "large.txt"], tokenizer)
    assert sum(len(w.ids) for w in first.windows(128, 2000)) >= 1998  # what one text lacks the next one gives


def test_messages_pass_through_the_chat_template(tokenizer, tmp_path, llama_checkpoint):
    lines = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    lines.write_text(json.dumps({"messages": messages}) + "\n")
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(UserError, match=r"chat\.jsonl, line 1 holds messages, and the model has no chat template"):
        list(Corpus.open([lines], tokenizer, model).documents())
    (model / "chat_template.jinja").write_text("<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    (model / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    corpus = Corpus.open([lines], tokenizer, model)
    (document,) = corpus.documents()
    assert document.text == "<s>hi</s>ho</s>"
    (window,) = corpus.windows(64)
    assert (window.ids[0], window.ids[-1]) == (tokenizer.bos_id, next(iter(tokenizer.eos_ids)))
    assert window.ids.count(tokenizer.bos_id) == 1
    (model / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    with pytest.raises(UserError, match=r"line 1: .*not like this"):
        list(Corpus.open([lines], tokenizer, model).documents())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3: not valid JSON"),
        ("[" * 100_000, "line 3: not valid JSON"),
        ("[1]", "line 3: a JSON object"),
        ('{"prompt": "x"}', "line 3: a `text`"),
        ('{"text": 7}', "line 3: a `text`"),
        ('{"messages": ["x"]}', "line 3: a `text`"),
        ('{"text": "\\ud800"}', "line 3: the text is not valid Unicode"),
    ],
)
def test_bad_lines_are_named(tokenizer, tmp_path, line, said):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        list(Corpus.open([path], tokenizer).windows(64))


def test_what_is_no_text_is_refused(tokenizer, tmp_path, folder):
    for content, said in [(b"", "empty"), (b"a\0b", "binary"), (b"\xff\xfe\xfd", "binary")]:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match=said):
            Corpus.open([tmp_path / "bad"], tokenizer)
    with pytest.raises(UserError, match="cannot read"):
        Corpus.open([tmp_path / "missing"], tokenizer)
    with pytest.raises(UserError, match="given twice"):
        Corpus.open([folder, folder / ".." / "books"], tokenizer)
    with pytest.raises(UserError, match="no text in the folder"):
        Corpus.open([_only_binary(tmp_path)], tokenizer)
    with pytest.raises(UserError, match="add --text"):
        Corpus.open([], tokenizer)


def _only_binary(tmp_path):
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "one").write_bytes(b"\0")
    return folder


def test_damage_far_into_a_file_is_found_with_its_line(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_BYTES", 1 << 14)
    for bad, said in [(b"\xff", r"not UTF-8 text \(line 5002\)"), (b"\0", r"line 5002 holds a zero byte")]:
        path = tmp_path / "long.txt"
        path.write_bytes(b"a line of text\n" * 5001 + b"x" + bad + b"\nmore\n")
        with pytest.raises(UserError, match=said):
            Corpus.open([path], tokenizer).digest()


def test_a_line_beyond_the_limit_and_a_file_that_grows_are_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_BYTES", 1000)
    monkeypatch.setattr(text_files, "LINE_LIMIT", 4000)
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "x" * 9000}))
    with pytest.raises(UserError, match="a line over"):
        list(Corpus.open([path], tokenizer).documents())
    path.write_text(json.dumps({"text": "x" * 2000}))
    corpus = Corpus.open([path], tokenizer)
    with path.open("a") as file:
        file.write('\n{"text": "more"}')
    with pytest.raises(UserError, match="was changed"):
        list(corpus.documents())


def test_the_digest_is_of_names_and_contents(tokenizer, folder, tmp_path):
    def digest():
        return Corpus.open([folder], tokenizer).digest()

    read, first = [], digest()
    assert Corpus.open([folder], tokenizer).digest(read.append) == first
    assert sum(read) == Corpus.open([folder], tokenizer).bytes
    os.utime(folder / "a.txt", (0, 0))
    assert digest() == first
    (folder / "a.txt").write_text("the firsT\n")
    assert digest() != first


def test_domains_have_names_of_their_own(tokenizer, folder, tmp_path):
    other = tmp_path / "other" / "books"
    other.mkdir(parents=True)
    (other / "x.txt").write_text("x y z")
    assert Corpus.open([folder, other], tokenizer).domains == (str(folder), str(other))
    assert Corpus.open([folder, other / "x.txt"], tokenizer).domains == ("books", "x.txt")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "text.txt")
    with pytest.raises(UserError, match="write it to a file first"):
        text_files.find_files(tmp_path / "text.txt", lambda line: None)
