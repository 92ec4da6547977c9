"""A problem's costs and bytes are those of the placements that its choices stand for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost import ModelSizes, account
from placement.formulate import formulate, group_sizes, in_groups, least_rows, split_layer, to_placement
from placement.frequencies import Frequencies
from placement.latency import token_seconds
from placement.plan import Budgets, Mode, Segment
from placement.problem import Choice, PlacementProblem
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit, FlashSpeed, Speed

DRIVE = (FlashSpeed(4096, 1, 1e7), FlashSpeed(1 << 20, 32, 1e9))


def a_machine(random: np.random.Generator) -> Hardware:
    def unit(contention: float) -> ComputeUnit:
        speeds = {"q8_0": Speed(*(float(s) for s in random.uniform(1e8, 1e11, 2)))} if random.random() < 0.7 else {}
        flops = float(random.uniform(1e9, 1e11)) if random.random() < 0.5 else None
        return ComputeUnit(
            float(random.uniform(1e8, 1e11)), float(random.uniform(0, 1e-4)), contention, flops, speeds=speeds
        )

    first = float(random.uniform(1, 3))
    most = min(first / (first - 1), 5.0) if first > 1 else 5.0
    return Hardware(
        name="any",
        description="",
        gpu=unit(first),
        cpu=unit(float(random.uniform(1, most))),
        link_bandwidth=1e9,
        back_bandwidth=1e9,
        hand_over=float(random.choice([0, 1e-5, 1e-3])),
        sync=0.0,
        measured=False,
        flash=DRIVE,
    )


def a_model(random: np.random.Generator) -> tuple[ModelSizes, Frequencies]:
    layers, rows = int(random.integers(1, 5)), int(random.integers(1, 300))

    def sizes(most: int) -> tuple[int, ...]:
        return tuple(random.integers(1, most, layers).tolist())

    predictors = tuple(0 if random.random() < 0.3 else size for size in sizes(10_000))
    model = ModelSizes(
        n_layers=layers,
        n_rows=rows,
        row_bytes=int(random.integers(1, 500)),
        gated=bool(random.random() < 0.5),
        attention_bytes=sizes(100_000),
        predictor_bytes=predictors,
        embeddings_bytes=int(random.integers(1, 100_000)),
        head_bytes=int(random.choice([0, 50_000])),
        kv_bytes_per_token=int(random.integers(1, 100)),
        buffer_bytes=int(random.integers(0, 5_000)),
        row_extra_bytes=int(random.integers(0, 9)),
        weight_format=str(random.choice(["f16", "q8_0"])),
        positions_bytes=int(random.integers(0, 500)),
        final_norm_bytes=int(random.integers(0, 500)),
    )
    active = -np.sort(-random.beta(0.5, 3, (layers, rows)), axis=1)
    if random.random() < 0.2:
        active[0] = 0
    named = np.clip(active * random.uniform(0.5, 2), 0, 1)
    return model, Frequencies(active, named, 1 - (1 - active) ** 3, 1 - (1 - active) ** 9, True)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**9),
    mode=st.sampled_from(["dense", "exact", "threshold", "predicted"]),
    batch=st.integers(1, 40),
    context=st.integers(1, 5000),
    flash=st.booleans(),
)
def test_a_choice_costs_the_seconds_of_its_placement_and_takes_its_bytes(
    random_choice: Callable[..., Choice], seed: int, mode: Mode, batch: int, context: int, flash: bool
) -> None:
    random = np.random.default_rng(seed)
    hardware, (sizes, frequencies) = a_machine(random), a_model(random)
    budgets = Budgets(1 << 40, 1 << 40, context, batch)
    problem = formulate(sizes, frequencies, hardware, budgets, mode, "latency", flash=flash)
    choice = random_choice(problem, random)
    placement = to_placement(problem, choice, mode, budgets)
    expected = token_seconds(sizes, frequencies, hardware, placement)
    assert problem.cost(choice) == pytest.approx(expected.token_seconds, rel=1e-9, abs=1e-15)
    taken = account(sizes, placement)
    gpu, ram = problem.taken(choice)
    for memory, bytes_taken in (("gpu", gpu), ("ram", ram)):
        purposes = taken[memory]
        assert sum(purposes.values()) - purposes["buffers"] == bytes_taken
        assert purposes["buffers"] in (0, sizes.buffer_bytes)
    assert taken["ram"]["buffers"] == sizes.buffer_bytes
    assert problem.vram == (1 << 40) - sizes.buffer_bytes == problem.ram


def test_rows_are_grouped_by_64_and_the_last_group_may_be_short() -> None:
    assert group_sizes(256).tolist() == [64] * 4
    assert group_sizes(100).tolist() == [64, 36]
    assert group_sizes(1).tolist() == [1]
    assert group_sizes(11008).tolist() == [64] * 172
    sums = in_groups(np.arange(200.0).reshape(2, 100), group_sizes(100))
    assert sums.tolist() == [[2016, 4950 - 2016], [2016 + 6400, 14950 - 8416]]


def test_a_layer_is_split_where_its_groups_end() -> None:
    assert split_layer(100, 0, "gpu").segments == (Segment(0, 100, "ram", "cpu"),)
    assert split_layer(100, 100, "gpu").segments == (Segment(0, 100, "gpu", "gpu"),)
    assert split_layer(100, 64, "cpu", 80).segments == (
        Segment(0, 64, "gpu", "gpu"),
        Segment(64, 80, "ram", "cpu"),
        Segment(80, 100, "flash", "cpu"),
    )
    assert split_layer(100, 64, "cpu", 64).segments == (Segment(0, 64, "gpu", "gpu"), Segment(64, 100, "flash", "cpu"))


@pytest.fixture
def problem_of(
    make_sizes: Callable[..., ModelSizes],
    make_frequencies: Callable[..., Frequencies],
    make_hardware: Callable[..., Hardware],
) -> Callable[..., PlacementProblem]:
    def make(objective: str, vram: int, ram: int | None = None, **machine: object) -> PlacementProblem:
        return formulate(
            make_sizes(), make_frequencies(), make_hardware(**machine), Budgets(vram, ram, 64), "predicted", objective
        )  # type: ignore[arg-type]

    return make


def test_impact_is_what_is_not_on_the_gpu(
    problem_of: Callable[..., PlacementProblem], make_frequencies: Callable[..., Frequencies]
) -> None:
    problem = problem_of("impact", 1 << 20)
    active = make_frequencies().active
    everything, nothing = (problem.n_groups,) * 3, (0,) * 3
    on_gpu = Choice(everything, everything, (1,) * 3, 1, 1)
    assert problem.cost(on_gpu) == pytest.approx(0)
    assert problem.cost(replace(on_gpu, cuts=nothing)) == pytest.approx(active.sum())
    assert problem.cost(replace(on_gpu, cuts=(1, 0, 4))) == pytest.approx(
        active.sum() - active[0, :64].sum() - active[2].sum()
    )
    # A dense part counts as the rows that what it reads would fill, whatever its neighbours do.
    attention = 10_001 + 1_001 + 64 * 32
    assert problem.cost(replace(on_gpu, attention=(1, 0, 1))) == pytest.approx(attention / 192)
    assert problem.cost(replace(on_gpu, head=0)) == pytest.approx(6_064 / 192)
    assert problem.cost(replace(on_gpu, embeddings=0)) == pytest.approx(0)


def test_a_budget_below_the_buffers_leaves_no_room(problem_of: Callable[..., PlacementProblem]) -> None:
    assert (problem_of("latency", 776, 776).vram, problem_of("latency", 776, 776).ram) == (0, 0)
    assert (problem_of("latency", 778, 779).vram, problem_of("latency", 778, 779).ram) == (1, 2)
    assert problem_of("latency", 0).ram is None


def test_flash_needs_figures_of_a_drive(
    make_sizes: Callable[..., ModelSizes],
    make_frequencies: Callable[..., Frequencies],
    make_hardware: Callable[..., Hardware],
) -> None:
    with pytest.raises(UserError, match="has no figures of a drive"):
        formulate(make_sizes(), make_frequencies(), make_hardware(), Budgets(0, 0, 64), "exact", "latency", flash=True)


def test_least_rows_by_hand(make_sizes: Callable[..., ModelSizes], make_hardware: Callable[..., Hardware]) -> None:
    sizes = make_sizes(row_bytes=188, row_extra_bytes=4)
    saved = 192 / 1e9 - 192 / 4e9
    assert least_rows(sizes, make_hardware(sync=0)) == 0
    assert least_rows(sizes, make_hardware(sync=0.5 * saved)) == 1
    assert least_rows(sizes, make_hardware(sync=9.5 * saved)) == 10
    assert least_rows(sizes, make_hardware(sync=255.5 * saved)) == 256
    assert least_rows(sizes, make_hardware(sync=256.5 * saved)) is None
    assert least_rows(sizes, make_hardware(gpu=1e9)) is None
    assert least_rows(sizes, make_hardware(gpu=5e8)) is None


def test_only_impact_knows_least_rows(problem_of: Callable[..., PlacementProblem]) -> None:
    sync = 100 * (192 / 1e9 - 192 / 4e9)
    assert problem_of("impact", 1 << 20, sync=sync).least == (100,) * 3
    assert problem_of("latency", 1 << 20, sync=sync).least == (0,) * 3
