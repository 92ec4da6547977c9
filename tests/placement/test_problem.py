"""What choices cost and take, against figures worked out by hand and against trying them all."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement.problem import Choice, DenseParts, PlacementProblem

Small = Callable[[int], PlacementProblem]
Random = Callable[[PlacementProblem, np.random.Generator], Choice]


@pytest.fixture
def two_layers() -> PlacementProblem:
    """Groups of 4, 4 and 2 rows of 10 bytes; a group on the GPU costs 1, on the CPU 4 (3 and 1), on flash 8 more."""
    cpu = np.array([[4.0, 3.0, 1.0]] * 2)
    return PlacementProblem(
        objective="latency",
        groups=np.array([4, 4, 2]),
        row_bytes=10,
        gpu=np.ones((2, 3)),
        cpu=cpu,
        flash=None,
        gpu_start=0.5,
        cpu_start=0.25,
        gpu_share=0.0,
        cpu_share=0.0,
        hand_over=2.0,
        least=(0, 5),
        attention=DenseParts(np.array([100, 200]), np.array([[30.0, 3.0], [50.0, 5.0]])),
        ends=DenseParts(np.array([7, 11]), np.array([[0.0, 0.0], [70.0, 7.0]])),
        tied=False,
        vram=400,
        ram=300,
    )


def choose(cuts: tuple[int, ...], attention: tuple[int, ...], ends: tuple[int, int] = (0, 0), **more: Any) -> Choice:
    return Choice(cuts, more.get("kept", (3, 3)), attention, *ends)


def test_costs_by_hand(two_layers: PlacementProblem) -> None:
    all_cpu = 8.25 + 30 + 8.25 + 50 + 70
    assert two_layers.cost(choose((0, 0), (0, 0))) == pytest.approx(all_cpu)
    # All on the GPU but the embeddings: one change of unit, half a hand-over.
    assert two_layers.cost(choose((3, 3), (1, 1), (0, 1))) == pytest.approx(3.5 + 3 + 3.5 + 5 + 7 + 1)
    # A split layer ends with its slower unit and costs a hand-over, whichever unit its attention is on.
    split = max(1.5, 4.25)
    assert two_layers.cost(choose((1, 0), (0, 0))) == pytest.approx(split + 2 + 30 + 8.25 + 50 + 70)
    assert two_layers.cost(choose((1, 0), (1, 0))) == pytest.approx(split + 2 + 3 + 1 + 1 + 8.25 + 50 + 70)
    # Rows all on the other unit than the attention are a hand-over too.
    assert two_layers.cost(choose((3, 0), (0, 0))) == pytest.approx(3.5 + 2 + 30 + 8.25 + 50 + 70)


def test_units_that_share_memory_slow_each_other(two_layers: PlacementProblem) -> None:
    slowed = replace(two_layers, gpu_share=0.5, cpu_share=0.1)
    split = max(4.25 + 0.5 * 1.5, 1.5 + 0.1 * 4.25)
    assert slowed.cost(choose((1, 0), (0, 0))) == pytest.approx(split + 2 + 30 + 8.25 + 50 + 70)
    added = replace(two_layers, gpu_share=1.0, cpu_share=1.0)
    assert added.cost(choose((1, 0), (0, 0))) == pytest.approx(1.5 + 4.25 + 2 + 30 + 8.25 + 50 + 70)


def test_rows_on_flash_cost_more(two_layers: PlacementProblem) -> None:
    flash = replace(two_layers, flash=np.full((2, 3), 8.0))
    plain = two_layers.cost(choose((1, 0), (0, 0)))
    assert flash.cost(choose((1, 0), (0, 0))) == pytest.approx(plain)
    assert flash.cost(choose((1, 0), (0, 0), kept=(2, 3))) == pytest.approx(plain + 8)
    assert flash.cost(choose((1, 0), (0, 0), kept=(1, 0))) == pytest.approx(plain + 16 + 24)
    assert flash.cost(choose((1, 0), (0, 0), kept=(0, 3))) == math.inf  # on the GPU and not kept
    assert two_layers.cost(choose((1, 0), (0, 0), kept=(2, 3))) == math.inf  # there is no flash


def test_what_is_not_allowed_costs_without_end(two_layers: PlacementProblem) -> None:
    assert two_layers.cost(choose((0, 1), (0, 0))) == math.inf  # four rows where five are the least
    assert math.isfinite(two_layers.cost(choose((0, 2), (0, 0))))
    nowhere = replace(two_layers, least=(None, 0))
    assert nowhere.cost(choose((3, 0), (0, 0))) == math.inf
    assert math.isfinite(nowhere.cost(choose((0, 1), (0, 0))))
    tied = replace(two_layers, tied=True)
    assert tied.cost(choose((0, 0), (0, 0), (1, 0))) == math.inf
    assert math.isfinite(tied.cost(choose((0, 0), (0, 0), (1, 1))))


@pytest.mark.parametrize(("least", "first"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (10, 3), (None, 3)])
def test_the_first_cut_holds_the_least_rows(two_layers: PlacementProblem, least: int | None, first: int) -> None:
    assert replace(two_layers, least=(least, 0)).first_cut(0) == first


def test_bytes_by_hand(two_layers: PlacementProblem) -> None:
    choice = choose((2, 0), (1, 0), (0, 1))
    assert two_layers.taken(choice) == (80 + 100 + 11, 20 + 100 + 200 + 7)
    assert replace(two_layers, vram=191, ram=327).fits(choice)
    assert not replace(two_layers, vram=190, ram=327).fits(choice)
    assert not replace(two_layers, vram=191, ram=326).fits(choice)
    assert replace(two_layers, vram=191, ram=None).fits(choice)
    flash = replace(two_layers, flash=np.full((2, 3), 8.0))
    assert flash.taken(choose((2, 0), (1, 0), (0, 1), kept=(2, 1))) == (80 + 100 + 11, 40 + 200 + 7)


def test_dense_parts_held_in_place_allow_nothing_else(two_layers: PlacementProblem) -> None:
    held = two_layers.with_dense(choose((0, 0), (1, 0), (0, 1)))
    same = choose((1, 2), (1, 0), (0, 1))
    assert held.cost(same) == two_layers.cost(same)
    for other in (choose((1, 2), (0, 0), (0, 1)), choose((1, 2), (1, 0), (1, 1)), choose((1, 2), (1, 0), (0, 0))):
        assert held.cost(other) == math.inf > two_layers.cost(other)


def test_costs_and_bytes_agree_with_trying_all(small_problem: Small, try_all: Callable[..., Any]) -> None:
    found = 0
    for seed in range(150):
        problem = small_problem(seed)
        best = try_all(problem)
        if best.choice is not None:
            found += 1
            assert problem.cost(best.choice) == pytest.approx(best.cost, abs=1e-12)
            assert problem.allows(best.choice)
            assert best.cost <= problem.dearest + 1e-12
    assert found > 100


def test_no_choice_is_better_than_the_best_of_all(
    small_problem: Small, try_all: Callable[..., Any], random_choice: Random
) -> None:
    random = np.random.default_rng(0)
    for seed in range(150):
        problem = small_problem(seed)
        best = try_all(problem).cost
        for _ in range(10):
            choice = random_choice(problem, random)
            if problem.allows(choice):
                assert best - 1e-12 <= problem.cost(choice) <= problem.dearest + 1e-12
