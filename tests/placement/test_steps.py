"""Steps make a choice cheaper, or make it fit, and break nothing on the way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from placement.problem import Choice, PlacementProblem
from placement.steps import improve, repair

Small = Callable[[int], PlacementProblem]
TryAll = Callable[[PlacementProblem], Any]


def excess(problem: PlacementProblem, choice: Choice) -> int:
    vram, ram = problem.taken(choice)
    return max(vram - problem.vram, 0) + (0 if problem.ram is None else max(ram - problem.ram, 0))


def test_steps_never_make_a_choice_dearer_nor_break_a_budget(
    small_problem: Small, random_choice: Callable[..., Any], try_all: TryAll
) -> None:
    random = np.random.default_rng(0)
    improved = reached = 0
    for seed in range(150):
        problem, best = small_problem(seed), try_all(small_problem(seed)).cost
        for _ in range(5):
            choice = random_choice(problem, random)
            if not problem.allows(choice):
                continue
            better = improve(problem, choice)
            assert problem.allows(better)
            assert best - 1e-9 <= problem.cost(better) <= problem.cost(choice)
            improved += problem.cost(better) < problem.cost(choice)
            reached += problem.cost(better) <= best + 1e-9
    assert improved > 100
    assert reached > 50


def test_the_best_choice_cannot_be_improved(small_problem: Small, try_all: TryAll) -> None:
    for seed in range(150):
        best = try_all(small_problem(seed))
        if best.choice is not None:
            problem = small_problem(seed)
            assert problem.cost(improve(problem, best.choice)) == pytest.approx(best.cost, abs=1e-9)


def test_what_is_over_budget_is_made_to_fit_where_a_step_can(
    small_problem: Small, random_choice: Callable[..., Any]
) -> None:
    random = np.random.default_rng(0)
    mended = 0
    for seed in range(200):
        problem = small_problem(seed)
        for _ in range(3):
            choice = random_choice(problem, random)
            if not np.isfinite(problem.cost(choice)):
                continue
            fitted = repair(problem, choice)
            assert (fitted.embeddings, fitted.head) == (choice.embeddings, choice.head)
            assert np.isfinite(problem.cost(fitted))
            assert excess(problem, fitted) <= excess(problem, choice)
            if problem.fits(choice):
                assert fitted == choice
            mended += problem.fits(fitted) and not problem.fits(choice)
    assert mended > 100


def test_rows_alone_can_always_be_taken_off_the_gpu(small_problem: Small) -> None:
    for seed in range(200):
        problem = small_problem(seed)
        if problem.ram is None and None not in problem.least:
            everything = (problem.n_groups,) * problem.n_layers
            on_gpu = Choice(everything, everything, (0,) * problem.n_layers, 0, 0)
            assert problem.fits(repair(problem, on_gpu))
