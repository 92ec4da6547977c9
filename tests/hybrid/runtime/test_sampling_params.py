"""What may be asked for: every field is checked, and refused by its name."""

import dataclasses
import math

import pytest

from hybrid.runtime.grammar import Grammar
from hybrid.runtime.sampler import SamplingParams
from profiler.artifacts import UserError

NO_NUMBERS = ["hot", True, math.nan, math.inf, None, 10**400]
WRONG = {
    "max_tokens": [0, -1, 1.5, True, "9"],
    "temperature": [-0.1, 100.5, *NO_NUMBERS],
    "top_p": [0.0, 1.01, -1, *NO_NUMBERS],
    "top_k": [-1, 1.0, True],
    "min_p": [-0.1, 1.01, *NO_NUMBERS],
    "repetition_penalty": [0, -1, 101, *NO_NUMBERS],
    "presence_penalty": [-2.01, 2.01, *NO_NUMBERS],
    "frequency_penalty": [-2.01, 2.01, *NO_NUMBERS],
    "logit_bias": [[1], {-1: 1.0}, {"5": 1.0}, {True: 1.0}, {1: 101}, {1: math.nan}, dict.fromkeys(range(10_001), 1.0)],
    "logprobs": [-1, 21, 1.0, True],
    "n": [0, 129, 1.0, True, None],
    "seed": [-1, 1.0, 1 << 64, True],
    "stop": ["end", ("",), (3,), ["a"], ("a" * 1025,), ("a",) * 17],
    "ignore_eos": [None, 1, "yes"],
    "grammar": ["{}", {"kind": "regex"}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name) as caught:
        SamplingParams(**{name: value})
    assert len(str(caught.value)) < 300


def test_every_field_is_checked():
    assert set(WRONG) == {field.name for field in dataclasses.fields(SamplingParams)}


def test_the_ends_of_every_range_are_taken():
    for lowest in (True, False):
        SamplingParams(
            max_tokens=1 if lowest else 10**9,
            temperature=0 if lowest else 100,
            top_p=1e-9 if lowest else 1,
            top_k=0 if lowest else 10**9,
            min_p=0 if lowest else 1,
            repetition_penalty=0.01 if lowest else 100,
            presence_penalty=-2 if lowest else 2,
            frequency_penalty=-2 if lowest else 2,
            logit_bias={} if lowest else {0: 100, 5: -100.0},
            logprobs=0 if lowest else 20,
            n=1 if lowest else 128,
            seed=0 if lowest else (1 << 64) - 1,
            stop=() if lowest else ("a" * 1024,) * 16,
            ignore_eos=lowest,
            grammar=None if lowest else Grammar("json_object"),
        )


def test_biases_are_a_copy_and_must_be_of_the_vocabulary():
    given = {7: 1.0}
    params = SamplingParams(logit_bias=given)
    given[9] = 2.0
    assert params.logit_bias == {7: 1.0}
    params.check_vocabulary(8)
    with pytest.raises(UserError, match=r"logit_bias names token 7.*0 to 6"):
        params.check_vocabulary(7)
    SamplingParams().check_vocabulary(1)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("yaml", "", "kind is 'yaml'"),
        ("regex", 3, "text is a int"),
        ("regex", "", "needs a text"),
        ("json_object", "{}", "takes no text"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[" * 50_000, "not JSON"),
        ("json_schema", "[]", "a JSON schema is an object"),
        ("json_schema", "false", "a JSON schema is an object"),
        ("lark", "a" * 70_000, "70000 characters"),
    ],
)
def test_grammars_that_are_plainly_none_are_refused(kind, text, said):
    with pytest.raises(UserError, match=said):
        Grammar(kind, text)
