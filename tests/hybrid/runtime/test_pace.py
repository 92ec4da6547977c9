"""What passes cost is learned from them, and steps keep the pace."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.runtime.pace import PassCosts, Work

# Seconds of a pass, of a token in parts of that, and of a position in thousandths of that.
costs = st.tuples(st.floats(1e-4, 1e-1), st.floats(0.05, 0.5), st.floats(0, 2)).map(
    lambda p: (p[0], p[0] * p[1], p[0] * p[1] * p[2] / 1000)
)


def seconds(line, work):
    return line[0] + line[1] * work.tokens + line[2] * work.positions


def learned(line, sizes, dice, noise=0.0, disturbed=0.0):
    found = PassCosts()
    for tokens in sizes:
        work = Work(tokens, sum(dice.randrange(1, 3000) for _ in range(tokens)))
        taken = seconds(line, work) * (1 + noise * dice.random())
        found.observe(work, taken * (20 if dice.random() < disturbed else 1))
    return found


@settings(deadline=None, max_examples=60)
@given(line=costs, seed=st.integers(0, 999), decoding=st.integers(1, 15), position=st.integers(0, 4000))
def test_a_step_with_prompt_tokens_takes_about_as_many_times_as_long_as_is_asked_for(line, seed, decoding, position):
    dice = random.Random(seed)
    found = learned(line, [*range(1, 17)] * 4, dice, noise=0.1, disturbed=0.05)
    usual = Work(decoding, decoding * 500)
    count = found.affordable([usual], position, 16 - decoding, 2.0)
    assert 1 <= count <= 16 - decoding
    ratio = seconds(line, Work(decoding + count, usual.positions + count * position)) / seconds(line, usual)
    assert count == 1 or ratio < 2.5
    more = seconds(line, Work(decoding + count + 2, usual.positions + (count + 2) * position)) / seconds(line, usual)
    assert count > 14 - decoding or more > 1.5, "and no less of the prompt than that allows"


def test_what_changes_is_learned_anew():
    dice, before, now = random.Random(1), (1e-3, 1e-4, 0.0), (1e-2, 1e-3, 0.0)
    found = learned(before, [1, 4, 16] * 10, dice)
    for tokens in [1, 4, 16] * 10:
        found.observe(Work(tokens, tokens * 100), seconds(now, Work(tokens, tokens * 100)))
    assert found.seconds(Work(8, 800)) == pytest.approx(seconds(now, Work(8, 800)), rel=0.1)


def test_without_a_figure_a_step_takes_as_many_prompt_tokens_as_others():
    found = PassCosts()
    assert found.seconds(Work(4, 10)) == 0
    assert found.affordable([Work(3, 10)], 0, 13, 2.0) == 3
    assert found.affordable([Work(16, 10), Work(0, 0)], 0, 16, 2.0) == 16


def test_of_one_size_alone_costs_go_by_tokens():
    found = PassCosts()
    for _ in range(8):
        found.observe(Work(16, 1600), 0.16)
    assert found.seconds(Work(4, 400)) == pytest.approx(0.04, rel=0.1)
    assert found.affordable([Work(4, 400)], 100, 12, 2.0) in (3, 4)


def test_a_pass_for_the_prompt_alone_costs_what_a_pass_costs():
    line = (1e-2, 1e-3, 0.0)
    found = learned(line, [*range(1, 17)] * 4, random.Random(1))
    full = Work(16, 1600)
    assert found.affordable([full, Work(0, 0)], 0, 16, 2.0) in (15, 16)
    assert found.affordable([full, Work(0, 0)], 0, 16, 1.5) == pytest.approx(3, abs=1)
    assert found.affordable([full, Work(0, 0)], 0, 16, 1.0) == 1, "a prompt always goes on"
    assert found.seconds(Work(0, 0)) == 0
