"""Placements without a solver keep every constraint, and are the best ones where greed is enough."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement.greedy import top_k
from placement.problem import Choice, DenseParts, PlacementProblem

Small = Callable[[int], PlacementProblem]
TryAll = Callable[[PlacementProblem], Any]


def heat_of(problem: PlacementProblem) -> Any:
    return problem.cpu / problem.groups


def fits_without_rows(problem: PlacementProblem, choice: Choice) -> bool:
    nothing = (0,) * problem.n_layers
    return problem.fits(Choice(nothing, nothing, choice.attention, choice.embeddings, choice.head))


def test_the_hottest_groups_keep_the_constraints(small_problem: Small, random_choice: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    for seed in range(300):
        problem = small_problem(seed)
        dense = random_choice(problem, random)
        hottest = top_k(problem, heat_of(problem), dense)
        assert (hottest.attention, hottest.embeddings, hottest.head) == (dense.attention, dense.embeddings, dense.head)
        if fits_without_rows(problem, dense):
            assert problem.taken(hottest)[0] <= problem.vram
            assert problem.flash is None or problem.fits(hottest)
            assert math.isfinite(problem.cost(hottest))


def test_the_hottest_groups_are_the_best_where_all_are_whole_and_none_is_required(
    small_problem: Small, try_all: TryAll
) -> None:
    tried = 0
    for seed in range(300):
        problem = small_problem(seed)
        if problem.objective != "impact":
            continue
        whole = np.full(problem.n_groups, 4)
        heat = -np.sort(-problem.cpu, axis=1)
        plain = replace(
            problem, groups=whole, cpu=heat, flash=None, ram=None, least=(0,) * problem.n_layers, vram=problem.vram + 30
        )
        dense = try_all(plain).choice
        hottest = top_k(plain, heat / whole, dense)
        assert plain.cost(hottest) == pytest.approx(try_all(plain).cost)
        tried += 1
    assert tried > 80


def test_the_hottest_groups_by_hand(small_problem: Small) -> None:
    no_parts = DenseParts(np.zeros(2, dtype=np.int64), np.zeros((2, 2)))
    problem = replace(
        next(p for p in map(small_problem, range(100)) if p.objective == "impact"),
        groups=np.array([4, 4]),
        gpu=np.zeros((2, 2)),
        cpu=np.array([[9.0, 0.0], [3.0, 2.0]]),
        flash=None,
        ram=None,
        tied=False,
        least=(0, 0),
        attention=no_parts,
        ends=no_parts,
        row_bytes=1,
    )
    dense = Choice((0, 0), (2, 2), (0, 0), 0, 0)
    for vram, least, cuts in (
        (3, (0, 0), (0, 0)),
        (4, (0, 0), (1, 0)),
        (8, (0, 0), (1, 1)),
        (12, (0, 0), (1, 2)),
        (16, (0, 0), (2, 2)),
        (8, (None, 0), (0, 2)),
        (8, (8, 0), (2, 0)),  # nine for eight rows is more than three for four
        (7, (8, 0), (0, 1)),
    ):
        given = replace(problem, vram=vram, least=least)
        assert top_k(given, heat_of(given), dense).cuts == cuts
