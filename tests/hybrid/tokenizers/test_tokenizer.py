import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer

from hybrid.tokenizer import FastTokenizer, SentencePieceTokenizer, load_tokenizer
from profiler.artifacts import UserError

TEXTS = [
    "",
    "The lazy dog",
    " leading and  double  spaces ",
    "def parse(text):\n\n        return text",
    "naïve Straße 你好 😀👩‍👩‍👧 \u0000\t\r\n end",
    "unseen: Ωμέγα ₿ 🦊",
]
KINDS = ("llama", "unigram", "json_llama", "json_gpt2", "gpt2", "opt")


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(loaded, kind, text):
    tokenizer = loaded[kind]
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_bos=False) == ids[len(tokenizer.encode("")) :]


OPENINGS = {"llama": [1], "unigram": [1], "json_llama": [1], "opt": [2], "gpt2": [], "json_gpt2": []}


@pytest.mark.parametrize(("kind", "opening"), OPENINGS.items())
def test_a_text_is_opened_by_bos_once_where_the_tokenizer_says_so(loaded, kind, opening):
    assert loaded[kind].encode("") == opening
    assert loaded[kind].encode("", add_bos=False) == []
    assert loaded[kind].bos_id == next(iter(opening), None)


def test_tokenizer_config_stands_above_the_post_processor(made, tmp_path):
    for source, add_bos, opening in (("json_llama", False, []), ("json_gpt2", True, [0])):
        directory = tmp_path / source
        directory.mkdir()
        (directory / "tokenizer.json").write_bytes((made[source] / "tokenizer.json").read_bytes())
        write_json(directory / "tokenizer_config.json", {"add_bos_token": add_bos, "bos_token": "<s>"})
        assert load_tokenizer(directory).encode("") == opening


def oracle(made: dict[str, Path], kind: str):
    if kind == "json_llama":
        return AutoTokenizer.from_pretrained(made[kind])
    files = {"vocab_file": str(made[kind] / "vocab.json"), "merges_file": str(made[kind] / "merges.txt")}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    return GPT2Tokenizer.from_pretrained(made[kind], **files, **names, pad_token="<pad>", add_bos_token=kind == "opt")


@pytest.mark.parametrize("kind", ["json_llama", "opt"])
@pytest.mark.parametrize("text", [*TEXTS, "a </s> b", "<pad>x"])
def test_ids_and_texts_are_those_of_transformers(loaded, made, kind, text):
    reference = oracle(made, kind)
    ids = loaded[kind].encode(text)
    assert ids == reference.encode(text)
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert loaded[kind].decode(ids, skip_special=skip) == expected


@pytest.mark.parametrize("text", [*TEXTS, "a</s> b", "x <s>y"])
def test_the_two_forms_of_a_llama_tokenizer_agree(loaded, made, tmp_path, text):
    """transformers reads tokenizer.model by turning it into tokenizer.json; SentencePiece itself says the same."""
    (tmp_path / "tokenizer.model").write_bytes((made["llama"] / "tokenizer.model").read_bytes())
    decoder = {str(i): {"content": name, "special": True} for i, name in enumerate(("<unk>", "<s>", "</s>"))}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    direct = load_tokenizer(tmp_path)
    assert isinstance(direct, SentencePieceTokenizer)
    assert isinstance(loaded["json_llama"], FastTokenizer)
    ids = direct.encode(text)
    assert ids == loaded["json_llama"].encode(text)
    assert direct.decode(ids) == loaded["json_llama"].decode(ids)
    assert direct.decode(ids, skip_special=False) == loaded["json_llama"].decode(ids, skip_special=False)


def test_added_tokens_of_sentencepiece_are_found_in_text(loaded):
    tokenizer = loaded["llama"]
    ids = tokenizer.encode("The dog<|im_end|>\n<tool> sleeps")
    assert ids.count(400) == 1
    assert ids.count(450) == 1
    assert tokenizer.vocab_size == 451
    assert tokenizer.decode([i for i in ids if i >= 400], skip_special=False) == "<|im_end|><tool>"
    assert "<|im_end|>" not in tokenizer.decode(ids)
    assert "<tool>" in tokenizer.decode(ids)


def test_added_tokens_json_is_read_and_specials_are_known_by_name(made, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((made["llama"] / "tokenizer.model").read_bytes())
    write_json(tmp_path / "added_tokens.json", {"<end>": 400, "<start>": 401})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<end>"}})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == {400}
    assert tokenizer.decode([401, 400]) == "<start>"


def test_ids_without_a_token_decode_to_nothing(loaded):
    for kind, tokenizer in loaded.items():
        hole = 430 if kind == "llama" else 10**9  # between the pieces and the added tokens, or beyond all
        ids = [-1, tokenizer.vocab_size, *(j for i in tokenizer.encode("a dog", add_bos=False) for j in (i, hole))]
        assert tokenizer.decode(ids) == "a dog"
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == "a dog"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_stream_gives_what_decoding_the_whole_gives(loaded, kind, data):
    tokenizer = loaded[kind]
    size, some = tokenizer.vocab_size, tokenizer.encode("  a 你好😀", add_bos=False)
    one = st.one_of(st.integers(0, size + 3), st.sampled_from([0, 1, 2, 3, size - 2, size - 1, *range(3, 20), *some]))
    written = st.text("ab 你é😀\n", max_size=8).map(lambda text: tokenizer.encode(text, add_bos=False))
    parts = data.draw(st.lists(st.one_of(one.map(lambda i: [i]), written), max_size=25))
    ids = [i for part in parts for i in part]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", KINDS)
@given(first=st.text("ab 你é😀\n", min_size=1, max_size=8), second=st.text("ab 你é😀\n", max_size=8))
@settings(deadline=None, max_examples=40)
def test_a_stream_after_a_text_goes_on_with_it(loaded, kind, first, second):
    tokenizer = loaded[kind]
    before, ids = tokenizer.encode(first + "x"), tokenizer.encode(second, add_bos=False)
    stream = tokenizer.stream(before)
    assert first + "x" + "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(before + ids)


def test_text_comes_as_soon_as_it_is_certain(loaded):
    for kind in ("llama", "json_llama", "json_gpt2"):
        tokenizer = loaded[kind]
        stream = tokenizer.stream()
        pushed = [stream.push(i) for i in tokenizer.encode("The quick fox", add_bos=False)]
        assert "".join(pushed) == "The quick fox"
    stream = loaded["json_gpt2"].stream()
    *first, last = [stream.push(i) for i in loaded["json_gpt2"].encode("🦊")]
    assert (set(first), last) == ({""}, "🦊")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [5, 6]}, "config.json": {"eos_token_id": 7}}, {2, 5, 6}),
        ({"config.json": {"eos_token_id": 7}}, {2, 7}),
        ({"source_config.json": {"eos_token_id": 7}, "config.json": {"eos_token_id": 8}}, {2, 7}),
        ({"generation_config.json": {"eos_token_id": None}}, {2}),
        ({"tokenizer_config.json": {"eos_token": "<0x41>"}}, {3 + 0x41}),
        ({}, {2}),
    ],
)
def test_end_tokens_come_from_the_files_that_name_them(made, tmp_path, files, expected):
    (tmp_path / "tokenizer.model").write_bytes((made["llama"] / "tokenizer.model").read_bytes())
    for name, body in files.items():
        write_json(tmp_path / name, body)
    assert load_tokenizer(tmp_path).eos_ids == expected


def test_a_directory_without_a_tokenizer_names_what_was_looked_for(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json, tokenizer\.model, and vocab\.json with merges\.txt"):
        load_tokenizer(tmp_path)


UNMERGEABLE = b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}'
# The library cuts the prefix, which is longer than the piece, off it: its Rust code panics.
PANICS = (
    b'{"version":"1.0","model":{"type":"BPE","continuing_subword_prefix":"123456","vocab":{"a":0,"b":1,"ab":2},'
    b'"merges":["a b"]}}'
)
ENTRIES = [b'"x": {"content": "a"}', b'"3": {"content": 3}', b'"99999999999": {"content": "a"}']
DAMAGED = {
    "tokenizer.model": [b"", b"\x0a\xff\xff\xff\xff nonsense"],
    "tokenizer.json": [b"", b'{"model": {}}', UNMERGEABLE, PANICS, b"[" * 100_000],
    "tokenizer_config.json": [b"[1]", *(b'{"added_tokens_decoder": {%b}}' % entry for entry in ENTRIES)],
    "added_tokens.json": [b'{"a": -1}', b'{"a": true}', b'{"a": 500, "b": 500}', b'{"": 500}'],
    "generation_config.json": [b'{"eos_token_id": "two"}'],
    "merges.txt": [b"no merge at all here\n"],
    "vocab.json": [b"{"],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, contents in DAMAGED.items() for c in contents])
def test_damaged_files_are_refused(made, tmp_path, name, content):
    kind = "gpt2" if name in ("merges.txt", "vocab.json") else "llama"
    for source in made[kind].iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_a_text_that_the_tokenizer_cannot_encode_is_refused(made, tmp_path):
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[gone]"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(UserError, match="tokenizer files contradict themselves"):
        tokenizer.encode("b")


def test_a_piece_that_is_no_unicode_is_refused(made, tmp_path):
    model = (made["llama"] / "tokenizer.model").read_bytes()
    assert b"<0x41>" in model
    (tmp_path / "tokenizer.model").write_bytes(model.replace(b"<0x41>", b"<0\xff41>"))
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"1\.0 GiB"):
        load_tokenizer(tmp_path)


def test_lone_surrogates_are_refused(loaded):
    for tokenizer in loaded.values():
        with pytest.raises(UserError, match="character 1"):
            tokenizer.encode("a\ud800")
