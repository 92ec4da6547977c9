"""What passes cost is learned from them, and steps keep the pace."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.runtime.pace import NOTHING, PassCosts

# Seconds of a pass, of a token in parts of that, and of a key read and one attended to in thousandths of that.
costs = st.tuples(st.floats(1e-4, 1e-1), st.floats(0.05, 0.5), st.floats(0, 2), st.floats(0, 1)).map(
    lambda p: (p[0], p[0] * p[1], p[0] * p[1] * p[2] / 1000, p[0] * p[1] * p[3] / 1000)
)


def texts(*parts):
    """A pass of parts of texts: position of the first token, and how many."""
    work = NOTHING
    for first, count in parts:
        work = work.with_part(first, count)
    return work


def seconds(line, work):
    return line[0] + line[1] * work.tokens + line[2] * work.keys + line[3] * work.attended


def learned(line, dice, noise=0.0, disturbed=0.0):
    """From passes of 1 to 16 tokens, of which some belong to one text and the others each to one of its own."""
    found = PassCosts()
    for tokens in [*range(1, 17)] * 4:
        several = dice.randrange(tokens + 1)
        work = texts((dice.randrange(3000), several), *((dice.randrange(3000), 1) for _ in range(tokens - several)))
        taken = seconds(line, work) * (1 + noise * dice.random())
        found.observe(work, taken * (20 if dice.random() < disturbed else 1))
    return found


@settings(deadline=None, max_examples=60)
@given(line=costs, seed=st.integers(0, 999), decoding=st.integers(1, 15), position=st.integers(0, 3000))
def test_a_step_with_prompt_tokens_takes_about_as_many_times_as_long_as_is_asked_for(line, seed, decoding, position):
    found = learned(line, random.Random(seed), noise=0.1, disturbed=0.05)
    usual = texts(*[(500, 1)] * decoding)
    count = found.affordable([usual], [usual], position, 16 - decoding, 2.0)
    assert 0 <= count <= 16 - decoding
    ratio = seconds(line, usual.with_part(position, count)) / seconds(line, usual)
    assert ratio < 2.6
    more = seconds(line, usual.with_part(position, count + 2)) / seconds(line, usual)
    assert count > 14 - decoding or more > 1.5, "and no less of the prompt than that allows"


def test_what_changes_is_learned_anew():
    before, now = (1e-3, 1e-4, 0.0, 0.0), (1e-2, 1e-3, 0.0, 0.0)
    found = learned(before, random.Random(1))
    for tokens in [*range(1, 17)] * 8:
        found.observe(texts((100, tokens)), seconds(now, texts((100, tokens))))
    assert found.seconds(texts((100, 8))) == pytest.approx(seconds(now, texts((100, 8))), rel=0.1)


def test_without_a_figure_a_step_takes_as_many_prompt_tokens_as_others():
    found = PassCosts()
    assert found.seconds(texts((4, 4))) == 0
    assert found.affordable([texts((4, 3))], [texts((4, 3))], 0, 13, 2.0) == 3
    assert found.affordable([texts((4, 16))], [texts((4, 16)), NOTHING], 0, 16, 2.0) == 16


def test_of_one_size_alone_costs_go_by_tokens():
    found = PassCosts()
    for _ in range(8):
        found.observe(texts(*[(100, 1)] * 16), 0.16)
    usual = texts(*[(100, 1)] * 4)
    assert found.seconds(usual) == pytest.approx(0.04, rel=0.1)
    assert found.affordable([usual], [usual], 100, 12, 2.0) in (3, 4, 5)


def test_a_pass_for_the_prompt_alone_costs_what_a_pass_costs():
    found = learned((1e-2, 1e-3, 0.0, 0.0), random.Random(1))
    full = texts(*[(100, 1)] * 16)
    assert found.affordable([full], [full, NOTHING], 0, 16, 2.0) in (15, 16)
    assert found.affordable([full], [full, NOTHING], 0, 16, 1.5) == pytest.approx(3, abs=1)
    assert found.affordable([full], [full, NOTHING], 0, 16, 1.0) == 0
    assert found.seconds(NOTHING) == 0
