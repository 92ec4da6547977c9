"""What holds of every plan: budgets are kept, more memory never makes it slower, and frequency is never better."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.cost import ModelSizes, account
from placement.formulate import formulate, to_placement
from placement.frequencies import Frequencies
from placement.greedy import top_k
from placement.latency import token_seconds
from placement.plan import Budgets, Plan
from placement.planner import Request, hotness, make_plan, place
from placement.problem import Choice
from profiler.artifacts import UserError
from profiler.speeds import FlashSpeed

requests = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "mode": st.sampled_from(["dense", "exact", "threshold", "predicted"]),
        "objective": st.sampled_from(["latency", "latency", "impact"]),
        "tied": st.booleans(),
        "drive": st.booleans(),
    }
)
steps = st.tuples(st.integers(1, 500), st.sampled_from([1, 2, 4, 7, 16, 30]))  # tokens of context, sequences


@pytest.fixture(scope="session")
def draw_request(make_hardware: Callable[..., Any], make_request: Callable[..., Request]) -> Callable[..., Request]:
    """A small model on any machine."""

    def make(seed: int, mode: str, objective: str, tied: bool, drive: bool) -> Request:
        random = np.random.default_rng(seed)
        layers, rows = int(random.integers(1, 4)), int(random.choice([64, 100, 192, 256]))
        active = np.clip(-np.sort(-random.beta(0.5, 3, (layers, rows)), axis=1) * random.uniform(0.2, 2), 0, 1)
        named = np.clip(active * random.uniform(0.8, 1.5), 0, 1)
        sizes = ModelSizes(
            n_layers=layers,
            n_rows=rows,
            row_bytes=192,
            gated=bool(random.random() < 0.5),
            attention_bytes=tuple(random.integers(1_000, 30_000, layers).tolist()),
            predictor_bytes=(int(random.integers(0, 2_000)),) * layers,
            embeddings_bytes=int(random.integers(1, 9_000)),
            head_bytes=0 if tied else int(random.integers(1, 9_000)),
            final_norm_bytes=64,
            kv_bytes_per_token=16,
            buffer_bytes=777,
        )
        contention = float(random.uniform(1, 2))
        machine = make_hardware(
            gpu=float(random.uniform(8e8, 1e10)),
            contention=(contention, float(random.uniform(1, 2))),
            hand_over=float(random.choice([0, 1e-6, 3e-5])),
            overhead=(1e-6, 2e-6),
            sync=float(random.choice([0, 1e-6])),
            flash=(FlashSpeed(192, 1, 1e8),) if drive else (),
        )
        return make_request(
            sizes=sizes,
            frequencies=Frequencies(active, named, 1 - (1 - active) ** 3, 1 - (1 - active) ** 9, True),
            hardware=machine,
            mode=mode,
            objective=objective,
        )

    return make


def all_bytes(request: Request, context: int, batch: int) -> int:
    """Bytes of the model with its buffers."""
    sizes = request.sizes
    layers = sum(sizes.attention_bytes) + sum(sizes.predictor_bytes) + sizes.n_layers * sizes.kv_bytes(context, batch)
    rows = sizes.n_layers * sizes.n_rows * sizes.whole_row_bytes
    return layers + rows + sizes.embeddings_bytes + sizes.head_bytes + sizes.final_norm_bytes + sizes.buffer_bytes


def beside(request: Request, plan: Plan) -> Choice:
    """The hottest rows beside the dense parts of a plan."""
    budgets = plan.budgets
    problem = formulate(request.sizes, request.frequencies, request.hardware, budgets, request.mode, request.objective)
    unit = {"cpu": 0, "gpu": 1}
    everything, nothing = (problem.n_groups,) * problem.n_layers, (0,) * problem.n_layers
    dense = Choice(
        nothing, everything, tuple(unit[x.attention] for x in plan.layers), unit[plan.embeddings], unit[plan.head]
    )
    return top_k(problem, hotness(request, problem), dense)


@settings(deadline=None, max_examples=40)
@given(drawn=requests, step=steps, vram=st.floats(0, 1.2), ram=st.none() | st.floats(0, 1.2))
def test_budgets_are_kept_and_frequency_is_never_better(
    draw_request: Callable[..., Request], digests: Any, drawn: Any, step: Any, vram: float, ram: float | None
) -> None:
    request, total = draw_request(**drawn), all_bytes(draw_request(**drawn), *step)
    budgets = Budgets(int(vram * total), None if ram is None else int(ram * total), *step)
    try:
        plan = make_plan(request, budgets, name="any", digests=digests)
    except UserError as error:
        assert "missing" in str(error) or "no cut of the layers fits" in str(error)
        assert budgets.ram is not None
        return
    assert plan.total_bytes("gpu") <= budgets.vram
    assert budgets.ram is None or plan.total_bytes("ram") <= budgets.ram
    assert plan.bytes == account(request.sizes, plan)
    assert plan.solver is not None and plan.solver.gap is not None
    if budgets.vram and not any(plan.gpu_rows(layer) for layer in range(request.sizes.n_layers)):
        assert any(warning.startswith("no neuron is on the GPU") for warning in plan.solver.warnings)
    assert plan.total_bytes("flash") == 0 or request.hardware.flash
    if request.objective == "latency":
        assert plan.solver.cost == pytest.approx(plan.expected.token_seconds, rel=1e-9)
        if budgets.ram is None:
            problem = formulate(
                request.sizes, request.frequencies, request.hardware, budgets, request.mode, request.objective
            )
            hottest = to_placement(problem, beside(request, plan), request.mode, budgets)
            seconds = token_seconds(request.sizes, request.frequencies, request.hardware, hottest).token_seconds
            assert plan.expected.token_seconds <= seconds * (1 + 1e-9)


@settings(deadline=None, max_examples=20)
@given(
    drawn=requests,
    step=steps,
    vram=st.lists(st.floats(0, 1.2), min_size=3, max_size=3),
    ram=st.lists(st.floats(0.2, 1.2), min_size=2, max_size=2),
)
def test_more_memory_never_makes_a_plan_dearer(
    draw_request: Callable[..., Request], drawn: Any, step: Any, vram: list[float], ram: list[float]
) -> None:
    request, total = draw_request(**drawn), all_bytes(draw_request(**drawn), *step)

    def cost(gpu: float, host: float | None) -> float:
        budgets = Budgets(int(gpu * total), None if host is None else int(host * total), *step)
        try:
            return place(request, budgets)[1].cost
        except UserError:
            return float("inf")

    rising = sorted(ram)
    for costs in (
        [cost(size, None) for size in sorted(vram)],
        [cost(size, rising[0]) for size in sorted(vram)],
        [*(cost(vram[0], size) for size in rising), cost(vram[0], None)],
    ):
        for less, more in itertools.pairwise(costs):
            assert more <= less * (1 + 1e-9) + 1e-12 or more == less


def test_within_a_gap_plans_are_as_good_as_it_says(draw_request: Callable[..., Request]) -> None:
    for seed in range(12):
        request = draw_request(seed, "predicted", "latency", False, seed % 2 == 0)
        budgets = Budgets(all_bytes(request, 64, 1) // 2, None, 64)
        exact = place(request, budgets)[1].cost
        for gap in (0.001, 0.05):
            report = place(replace(request, gap=gap), budgets)[1]
            assert report.gap is not None and report.gap <= gap
            assert report.cost * (1 - report.gap) - 1e-12 <= exact <= report.cost + 1e-12
