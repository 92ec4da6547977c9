"""Stop strings, and which tokens a text is made of: against the whole text, cut where its first stop string begins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.runtime.output_text import OutputText
from hybrid.runtime.sampler import Picked, SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.tokenizer import load_tokenizer

ALPHABET = "ab é😀\nT"


@pytest.fixture(scope="module", params=["llama", "opt"])
def tokenizer(request):
    return load_tokenizer(request.getfixturevalue(f"{request.param}_checkpoint"))


def cut(text, stop):
    """What is left of a text that is read letter by letter until it ends with a stop string."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    text=st.text(ALPHABET, max_size=40),
    prompt=st.text(ALPHABET, min_size=1, max_size=10),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4),
)
@settings(deadline=None, max_examples=150)
def test_the_text_is_cut_at_the_first_stop_string_and_nothing_of_it_is_shown(tokenizer, text, prompt, stop):
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_bos=False)
    whole = tokenizer.decode(prompt_ids + ids)[len(tokenizer.decode(prompt_ids)) :]
    expected = cut(whole, stop)
    output, shown, seen = OutputText(tokenizer, prompt_ids, tuple(stop)), "", 0
    for count, token_id in enumerate(ids, 1):
        stopped = output.push(token_id)
        visible = output.visible()
        assert visible.startswith(shown), "what was shown stays"
        assert expected.startswith(visible)
        assert seen <= output.visible_tokens() <= count
        shown, seen = visible, output.visible_tokens()
        if stopped:
            break
    assert output.finish() == (expected != whole)
    assert output.visible() == output.text == expected
    tokens = output.visible_tokens()
    assert seen <= tokens <= len(ids)
    if expected == whole:
        assert tokens == len(ids)
    elif expected:
        stream = tokenizer.stream(prompt_ids)
        *before, last = map(stream.push, ids[:tokens])
        assert len("".join(before)) < len(expected), "no token is needless"
        assert len("".join([*before, last, stream.finish()])) >= len(expected), "they write all of it"


def test_a_stop_string_is_not_found_across_the_end_of_the_prompt(tokenizer):
    prompt_ids = tokenizer.encode("the END")
    output = OutputText(tokenizer, prompt_ids, ("END of", "D "))
    for token_id in tokenizer.encode("a of", add_bos=False):
        assert not output.push(token_id)
    assert not output.finish()
    assert output.text.strip() == "a of"


def token_of(tokenizer, letter):
    ids = range(tokenizer.vocab_size)
    return next(i for i in ids if tokenizer.token_bytes(i) == letter.encode() and not tokenizer.is_byte(i))


def test_text_that_may_become_a_stop_string_waits_with_its_tokens(tokenizer):
    output = OutputText(tokenizer, tokenizer.encode("x"), ("aaab", "b\n"))
    for letter in "Taaa":
        output.push(token_of(tokenizer, letter))
    assert (output.text, output.visible(), output.visible_tokens()) == ("Taaa", "T", 1)
    output.finish()
    assert (output.visible(), output.visible_tokens()) == ("Taaa", 4)


def test_bytes_of_a_character_wait_and_are_counted_with_it(tokenizer):
    ids = [*tokenizer.encode("T", add_bos=False)[-1:], *tokenizer.encode("T😀T", add_bos=False)]
    ids = ids[:1] + ids[-5:]
    output = OutputText(tokenizer, tokenizer.encode("x"), ())
    counts = []
    for token_id in ids:
        output.push(token_id)
        counts.append((output.visible(), output.visible_tokens()))
    assert counts[-1] == ("T😀T", 6)
    assert ("T", 1) in counts[1:4], "the first bytes show nothing"
    cut_off = OutputText(tokenizer, tokenizer.encode("x"), ("😀",))
    assert [cut_off.push(i) for i in ids[: 1 + next(i for i, c in enumerate(counts) if "😀" in c[0])]][-1]
    assert (cut_off.visible(), cut_off.visible_tokens()) == ("T", 1)


def test_a_sequence_keeps_logprobs_beside_all_its_tokens_and_says_which_are_seen(tokenizer):
    params = SamplingParams(max_tokens=50, stop=("END",), logprobs=1, ignore_eos=True)
    sequence = Sequence(tokenizer.encode("x"), params, tokenizer)
    ids = tokenizer.encode("a b END c", add_bos=False)
    for token_id in ids:
        if sequence.finish_reason is None:
            sequence.append(Picked(token_id, -0.5, ((token_id, -0.5),)), 100)
    assert sequence.finish_reason == "stop"
    assert sequence.text.strip() == "a b"
    assert [entry.token_id for entry in sequence.logprobs] == sequence.output_ids == ids[: len(sequence.output_ids)]
    seen = sequence.visible_tokens()
    assert seen < len(sequence.output_ids)
    assert tokenizer.decode(sequence.output_ids[:seen]).strip() == "a b"


def test_a_stop_string_that_comes_with_the_last_token_is_the_reason(tokenizer):
    ids = tokenizer.encode("b", add_bos=False)
    sequence = Sequence(tokenizer.encode("x"), SamplingParams(max_tokens=len(ids), stop=("b",)), tokenizer)
    for token_id in ids:
        sequence.append(Picked(token_id), 100)
    assert (sequence.finish_reason, sequence.text.strip()) == ("stop", "")
