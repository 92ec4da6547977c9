"""A tokenizer taken out of a GGUF file gives the ids of the one that went in, whatever the text."""

import json

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import train_sentencepiece
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hybrid.chat_template import load_chat_template
from hybrid.checkpoint.gguf_bpe import LLAMA3, QWEN2, TEKKEN
from hybrid.checkpoint.gguf_header import read_gguf_header
from hybrid.checkpoint.gguf_tokenizer import tokenizer_files
from hybrid.recommended import sampling_defaults
from hybrid.tokenizer import load_tokenizer
from profiler.artifacts import UserError

LINES = [
    "The brown fox runs over the lazy dog, and the dog sleeps on. It's 1999 or 20251122.",
    "def add(left, right):\n    return left + right  # we'LL see",
    "ä ö ü é è ñ ø å, 你好世界, привет мир, ünïcödé.",
] * 4
ODD = [
    "",
    " ",
    "   leading and   inner spaces  ",
    "tabs\tand\r\nlines\n\n\nend\n",
    "1234567890 3.14 1,000,000",
    "don't WE'LL you're I'M",
    "naïve café Ångström ﬁ \u212b e\u0301",
    "日本語の文章、中文 한국어",
    "🙂👩‍👩‍👧‍👦 \u200b\u00a0\ufeff",
    "<s> </s> <unk> <0x41> [PAD3] <|im_end|> <|im_start|>user",
    "\u2581lower \u2581\u2581 one eighth",
    "a\x00b\x07",
    "HTTPServer camelCase snake_case ALLCAPS!!! ???...",
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NAMED = {389: ("<|im_start|>", True), 390: ("<|im_end|>", True), 391: ("  two spaces", False)}


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """A folder with a SentencePiece tokenizer as Llama's: identity, byte fallback; three tokens added behind it."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "tokenizer.model").write_bytes(trained())
    named = {0: ("<unk>", True), 1: ("<s>", True), 2: ("</s>", True), **NAMED}
    added = {str(i): {"content": text, "special": special} for i, (text, special) in named.items()}
    write_json(folder, {**SPECIAL, "add_bos_token": True, "added_tokens_decoder": added, "chat_template": TEMPLATE})
    return folder


def trained(**options):
    kept = {"character_coverage": 0.98, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return train_sentencepiece("\n".join(LINES).split("\n"), 389, **kept, **options)


def write_json(folder, settings, name="tokenizer_config.json"):
    (folder / name).write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """`bpe(rule)`: a folder with a byte-level BPE that splits text by a rule, as Hugging Face writes it."""

    def make(rule):
        folder = tmp_path_factory.mktemp("bpe")
        trained = tokenizers.Tokenizer(models.BPE(ignore_merges=rule in ("llama-bpe", "tekken")))
        trained.normalizer = normalizers.NFC() if rule == "qwen2" else None
        pattern = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}.get(rule)
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        first = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
        first += [pre_tokenizers.Digits(individual_digits=True)] if rule == "smollm" else []
        trained.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
        trained.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
        trained.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
        trained.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
        trained.save(str(folder / "tokenizer.json"))
        own = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE, "gguf_pre": rule}
        write_json(folder, {**own, "add_bos_token": rule != "qwen2"})
        return folder

    return make


def taken_out(original, folder, make=None, rows=1000, **metadata):
    """The tokenizer's files, out of a GGUF file that `original` was written to."""
    from tokenizer_to_gguf import write_tokenizer

    writer = gguf.GGUFWriter(folder / "v.gguf", "llama")
    write_tokenizer(writer, original)
    for key, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, content in tokenizer_files(read_gguf_header(folder / "v.gguf"), rows).items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def same(ours, theirs, text):
    for bos in (True, False):
        assert ours.encode(text, add_bos=bos) == theirs.encode(text, add_bos=bos), text
    ids = theirs.encode(text)
    assert ours.encode_chat(text) == theirs.encode_chat(text)
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip)


def check(ours, theirs):
    for text in ODD:
        same(ours, theirs, text)

    @settings(deadline=None, max_examples=150, database=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
    def any_text(text):
        same(ours, theirs, text)

    any_text()
    assert (ours.bos_id, ours.special_ids) == (theirs.bos_id, theirs.special_ids)
    assert theirs.eos_ids <= ours.eos_ids


def test_sentencepiece(spm, tmp_path, make_gguf):
    ours, theirs = taken_out(spm, tmp_path), load_tokenizer(spm)
    check(ours, theirs)
    assert ours.eos_ids == {2, 390}  # the chat template ends turns with the latter
    assert ours.vocab_size == theirs.vocab_size == 392
    assert [ours.token_bytes(i) for i in range(392)] == [theirs.token_bytes(i) for i in range(392)]
    conversation = [{"role": "user", "content": "hi"}]
    with_files = [load_chat_template(folder).render(conversation) for folder in (tmp_path, spm)]
    assert with_files[0] == with_files[1] != ""


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_without_added_tokens_or_a_leading_space(prefix, tmp_path, make_gguf):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "tokenizer.model").write_bytes(trained(add_dummy_prefix=prefix))
    write_json(plain, {**SPECIAL, "add_bos_token": False, "add_prefix_space": prefix})
    check(taken_out(plain, tmp_path), load_tokenizer(plain))


@pytest.mark.parametrize("rule", ["llama-bpe", "qwen2", "tekken", "gpt-2", "smollm"])
def test_byte_level_bpe(rule, bpe, tmp_path, make_gguf):
    folder = bpe(rule)
    ours, theirs = taken_out(folder, tmp_path), load_tokenizer(folder)
    check(ours, theirs)
    assert ours.encode("<think>x<|im_end|>") == theirs.encode("<think>x<|im_end|>")


def test_what_the_makers_recommend(spm, tmp_path, make_gguf):
    keys = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05}
    metadata = {f"general.sampling.{key}": value for key, value in keys.items()}
    tokenizer = taken_out(spm, tmp_path, **metadata, **{"tokenizer.ggml.eot_token_id": 389})
    found = sampling_defaults(tmp_path)
    assert (found["temperature"], found["top_k"], found["top_p"]) == (0.6, 20, 0.95)
    assert found["repetition_penalty"] == 1.05 and tokenizer.eos_ids == {2, 389}


@pytest.mark.parametrize("rule", ["default", "kimi-k2", ""])
def test_an_unknown_rule_is_refused_and_not_guessed(rule, bpe, tmp_path, make_gguf):
    folder = bpe("gpt-2")
    own = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder, {**own, "gguf_pre": rule})
    with pytest.raises(UserError, match=f"rule '{rule}', which is not known.*--tokenizer FOLDER"):
        taken_out(folder, tmp_path)


def test_more_tokens_than_rows_are_refused(spm, tmp_path, make_gguf):
    with pytest.raises(UserError, match="names 392 tokens, and its embeddings have 391 rows"):
        taken_out(spm, tmp_path, rows=391)
