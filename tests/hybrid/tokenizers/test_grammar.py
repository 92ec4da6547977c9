"""Grammars with every kind of tokenizer: whatever a model would write, the text meets them."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.runtime.grammar import Grammar, GrammarError, GrammarFactory
from hybrid.runtime.grammar_tokens import GrammarTokens
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.tokenizer import load_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
KINDS = ("llama", "unigram", "json_llama", "json_gpt2", "gpt2", "opt")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", "é😀"]}, "maxItems": 2},
        "best": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "best"],
    "additionalProperties": False,
}


def written(tokenizer, grammar, seed=0, most=400, prompt="x", **options):
    """What a model whose logits are noise writes under a grammar."""
    params = SamplingParams(max_tokens=most, grammar=grammar, temperature=1.0, seed=seed, **options)
    sequence = Sequence(tokenizer.encode(prompt), params, tokenizer)
    noise = np.random.default_rng(seed)
    while sequence.finish_reason is None:
        row = noise.standard_normal(tokenizer.vocab_size + 3).astype(np.float32) * 3  # a model may have more outputs
        sequence.append(sequence.sampler.pick(row), 10_000)
    return sequence


def check_person(text):
    body = json.loads(text)
    assert list(body) == ["name", "age", "tags", "best"]
    assert isinstance(body["name"], str) and len(body["name"]) <= 6
    assert type(body["age"]) is int and 0 <= body["age"] <= 150
    assert len(body["tags"]) <= 2 and set(body["tags"]) <= {"a", "b\n", "é😀"}
    assert body["best"] in (None, True, False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_json_meets_its_schema(loaded, kind, seed):
    sequence = written(loaded[kind], Grammar("json_schema", json.dumps(PERSON)), seed)
    assert sequence.finish_reason == "stop"
    check_person(sequence.text)


@pytest.mark.parametrize("kind", KINDS)
def test_json_objects_are_json_or_cut_by_their_length(loaded, kind):
    reasons = set()
    for seed in range(6):
        sequence = written(loaded[kind], Grammar("json_object"), seed, most=120)
        reasons.add(sequence.finish_reason)
        if sequence.finish_reason == "stop":
            assert isinstance(json.loads(sequence.text), dict)
        else:
            assert len(sequence.output_ids) == 120
            assert sequence.text.startswith("{")
    assert "stop" in reasons


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pattern", "flags"),
    [
        (r"(yes|no|perhaps)", 0),
        (r" leading space, [0-9]{3}-[a-f]{2}", 0),
        (r"[äöü你😀]{1,4}\.", 0),
        (r"(<s>|</s>|<unk>)x{0,3}", 0),
        (r"a{0,5}", 0),
    ],
)
def test_a_text_matches_its_regex(loaded, kind, pattern, flags):
    for seed in range(4):
        sequence = written(loaded[kind], Grammar("regex", pattern), seed)
        assert sequence.finish_reason == "stop"
        assert re.fullmatch(pattern, sequence.text, flags)
        assert not set(sequence.output_ids) & loaded[kind].special_ids, "names of special tokens are written as text"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_meets_a_lark_grammar(loaded, kind):
    grammar = Grammar(
        "lark", 'start: "(" inner ")"\ninner: NUMBER | "[" inner "," NUMBER "]"\nNUMBER: /[1-9][0-9]{0,2}/'
    )
    for seed in range(4):
        text = written(loaded[kind], grammar, seed).text
        depth = text.count("[")
        assert re.fullmatch(r"\(" + r"\[" * depth + r"[1-9]\d{0,2}" + r",[1-9]\d{0,2}\]" * depth + r"\)", text)


@given(words=st.lists(st.text('ab é你"\\{<>', min_size=1, max_size=6), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("kind", ["llama", "json_llama", "gpt2"])
def test_one_of_some_texts_is_written(loaded, kind, words, seed):
    pattern = "|".join(re.escape(word) for word in words).replace("\\ ", " ")
    sequence = written(loaded[kind], Grammar("regex", pattern), seed)
    assert sequence.text in words
    assert sequence.finish_reason == "stop"


def test_greedy_and_cuts_stay_within_the_grammar_and_logprobs_are_the_models(loaded):
    tokenizer = loaded["llama"]
    for options in (
        {"top_k": 1},
        {"top_p": 0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 5.0, "logit_bias": {5: 100.0}},
    ):
        sequence = written(tokenizer, Grammar("json_schema", json.dumps(PERSON)), logprobs=2, **options)
        check_person(sequence.text)
        assert len(sequence.logprobs) == len(sequence.output_ids)
        assert all(value <= 0 for entry in sequence.logprobs for _, value in entry.alternatives)
        assert any(entry.token_id not in dict(entry.alternatives) for entry in sequence.logprobs)


def test_n_texts_have_grammars_of_their_own(loaded):
    tokenizer = loaded["opt"]
    params = SamplingParams(max_tokens=60, grammar=Grammar("regex", "[a-z]{5}!"), temperature=1.0, seed=3, n=3)
    sequences = [Sequence(tokenizer.encode("x"), params, tokenizer, index) for index in range(3)]
    row = np.zeros(tokenizer.vocab_size, dtype=np.float32)
    while any(sequence.finish_reason is None for sequence in sequences):
        for sequence in sequences:
            if sequence.finish_reason is None:
                sequence.append(sequence.sampler.pick(row), 1000)
    assert all(re.fullmatch("[a-z]{5}!", sequence.text) for sequence in sequences)
    assert len({sequence.text for sequence in sequences}) > 1


def test_the_length_ends_a_text_within_its_grammar_and_ignore_eos_does_not_go_beyond_it(loaded):
    tokenizer = loaded["opt"]
    sequence = written(tokenizer, Grammar("regex", "[a-z]{500}"), most=7)
    assert (sequence.finish_reason, len(sequence.output_ids)) == ("length", 7)
    sequence = written(tokenizer, Grammar("regex", "a{3}b?"), ignore_eos=True)
    assert sequence.finish_reason == "stop"
    assert sequence.text in ("aaa", "aaab")
    exact = written(tokenizer, Grammar("regex", "a"), most=1)
    assert (exact.text, exact.finish_reason) == ("a", "stop")


def test_stop_strings_count_within_a_grammar(loaded):
    sequence = written(loaded["llama"], Grammar("regex", "a{5}b{50}"), stop=("bb",))
    assert (sequence.text, sequence.finish_reason) == ("aaaaa", "stop")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "[^\\s\\S]", "nothing that this model can write"),
        ("lark", "start: undefined", "undefined"),
        ("lark", 'begin: "a"', "start"),
        ("lark", "start: start", "nothing that this model can write"),
        ("json_schema", '{"type": "strange"}', "strange"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}', "Unsatisfiable"),
        ("json_schema", '{"type": "object", "properties": {"a": false}, "required": ["a"]}', "Unsatisfiable"),
        ("json_schema", '{"$ref": "#"}', "nothing that this model can write"),
        ("json_schema", '{"$ref": "http://example.com/schema.json"}', "example.com"),
        ("json_schema", '{"a":' * 3_000 + "1" + "}" * 3_000, "recursion|JSON"),
        ("json_schema", json.dumps({"allOf": [{"anyOf": [{"minLength": i}] * 8} for i in range(30)]}), "large|complex"),
    ],
)
def test_grammars_that_cannot_be_used_say_why(loaded, kind, text, said):
    with pytest.raises(GrammarError, match=said) as caught:
        GrammarFactory.of(loaded["llama"]).compile(Grammar(kind, text))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


HOSTILE = {
    "many rules": "start: r0\n" + "\n".join(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(1500)) + '\nr1500: "b"',
    "states": "start: A\nA: /(.*a.{15}b.*)/ & /(.*c.{15}d.*)/ & ~/(.*e.{12}f.*)/",
    "ambiguous": 'start: (a | b)*\na: b b | a a | "x"\nb: a a | b b | "x" | ',
    "nested": "start: /(((a{1,1000}){1,1000}){1,1000}){1,1000}/",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_in_an_error_or_in_a_text(loaded, name):
    try:
        sequence = written(loaded["json_gpt2"], Grammar("lark", HOSTILE[name]), most=40)
    except GrammarError as error:
        assert len(str(error)) < 500
    else:
        assert sequence.finish_reason in ("stop", "length")


def test_a_model_that_cannot_write_what_is_asked_for_says_so(made, tmp_path):
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "decoder": BYTE_LEVEL}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", **vocabulary, "added_tokens": []}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == frozenset()
    assert written(tokenizer, Grammar("regex", "(ab){2}")).text == "abab"
    with pytest.raises(GrammarError, match="nothing that this model can write"):
        written(tokenizer, Grammar("regex", "abc"))


def test_a_tokenizer_without_bytes_is_refused(tmp_path):
    model = {"type": "WordLevel", "vocab": {"the": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    with pytest.raises(GrammarError, match="byte by byte"):
        written(load_tokenizer(tmp_path), Grammar("json_object"))


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.one_of(st.text('ab{": é你😀\n', max_size=10), st.sampled_from(["<s>", "</s>x", "name", '"name":'])))
@settings(deadline=None, max_examples=30)
def test_forced_bytes_become_tokens_of_exactly_these_bytes(loaded, kind, text):
    tokens = GrammarTokens(loaded[kind])
    ids = tokens(text)
    assert b"".join(tokens.tokens[i] for i in ids) == text.encode()
    assert tokens(text.encode()) == ids
    assert not set(ids) & set(tokens.special_token_ids)
