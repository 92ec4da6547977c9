"""What tokens are in bytes, for every kind of tokenizer."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from hybrid.tokenizer import REPLACEMENT, load_tokenizer

KINDS = ("llama", "unigram", "json_llama", "json_gpt2", "gpt2", "opt")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_bytes_of_tokens_make_up_their_text(loaded, kind, data):
    tokenizer = loaded[kind]
    assert tokenizer.has_bytes
    ordinary = [i for i in range(tokenizer.vocab_size) if not tokenizer.is_silent(i)]
    ids = tokenizer.encode("x", add_bos=False) + data.draw(st.lists(st.sampled_from(ordinary), max_size=12))
    joined = b"".join(map(tokenizer.token_bytes, ids))
    text = tokenizer.decode(ids)
    if REPLACEMENT not in text:
        assert joined.decode().removeprefix(" ") == text
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(1 << 30) == b""
    names = {tokenizer.token_bytes(i) for i in tokenizer.special_ids}
    assert names <= {b"<s>", b"<unk>", b"</s>", b"<pad>", b"<|im_end|>"}


def test_a_tokenizer_of_whole_words_has_no_bytes_of_its_own(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"the": 0, "dog": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert not tokenizer.has_bytes
    assert tokenizer.token_bytes(1) == b"dog"
