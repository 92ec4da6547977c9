"""What states say of attentions, and what whole groups can fill of budgets beside them."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import placement.states
from placement.problem import Choice, DenseParts, PlacementProblem
from placement.states import attention_states, limits

Small = Callable[[int], PlacementProblem]


def with_parts(problem: PlacementProblem, sizes: list[int], ends: list[int]) -> PlacementProblem:
    """The problem with layers whose attentions take so many bytes."""
    layers = len(sizes)
    return replace(
        problem,
        gpu=np.ones((layers, 3)),
        cpu=np.ones((layers, 3)),
        groups=np.array([4, 4, 2]),
        row_bytes=10,
        flash=None,
        least=(0,) * layers,
        attention=DenseParts(np.array(sizes), np.ones((layers, 2))),
        ends=DenseParts(np.array(ends), np.ones((2, 2))),
        tied=False,
        vram=400,
        ram=300,
    )


def test_states_say_how_many_attentions_and_bytes_are_on_the_gpu(
    small_problem: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = with_parts(small_problem(0), [50, 50, 50], [7, 11])
    alike = attention_states(problem)
    assert alike.shifts == (1, 1, 1) and alike.attentions.tolist() == [0, 1, 2, 3]
    assert alike.bytes is not None and alike.bytes.tolist() == [0, 50, 100, 150]
    problem = with_parts(small_problem(0), [50, 80, 140], [7, 11])
    states = attention_states(problem)  # 0, 1 and 3 units of 30 more than 50
    assert states.shifts == (5, 6, 8) and states.bytes is not None
    for there in np.ndindex(2, 2, 2):
        state = int(np.dot(there, states.shifts))
        assert states.attentions[state] == sum(there)
        assert states.bytes[state] == np.dot(there, [50, 80, 140])
    monkeypatch.setattr(placement.states, "MOST_STATES", 19)
    few = attention_states(problem)
    assert (few.shifts, few.bytes, few.attentions.tolist()) == ((1, 1, 1), None, [0, 1, 2, 3])


def test_budgets_are_what_whole_groups_can_fill(small_problem: Small) -> None:
    # Groups are multiples of 2 rows of 10 bytes.
    problem = with_parts(small_problem(0), [100, 200], [7, 11])
    on_gpu = np.array([0, 300])
    assert limits(problem).tolist() == [400, 300]
    assert limits(problem, on_gpu).tolist() == [[400, 300]] * 2  # where the ends are is not known
    ends = problem.with_ends(1, 0)
    assert limits(ends).tolist() == [400, 300]  # which attention is not known
    assert limits(ends, on_gpu).tolist() == [[7 + 380, 311 + -20 + 0], [307 + 80, 11 + 280]]
    held = problem.with_dense(Choice((0, 0), (3, 3), (1, 0), 1, 0))
    assert limits(held).tolist() == [107 + 280, 211 + 80]
    assert limits(replace(held, ram=None)).tolist() == [107 + 280, math.inf]


def test_no_choice_fills_more_than_the_limits(small_problem: Small, random_choice: Callable[..., Choice]) -> None:
    random = np.random.default_rng(0)
    for seed in range(200):
        problem, choice = small_problem(seed), random_choice(small_problem(seed), random)
        if problem.fits(choice):
            taken = np.array(problem.taken(choice))
            states = attention_states(problem)
            assert states.bytes is not None
            on_gpu = states.bytes[int(np.dot(choice.attention, states.shifts))]
            ends = problem.with_ends(choice.embeddings, choice.head)
            for most in (limits(problem.with_dense(choice)), limits(ends, on_gpu), limits(ends), limits(problem)):
                assert (taken <= most).all()
