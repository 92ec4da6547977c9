"""Small models, machines and placement problems, made to order, and the best of all choices found by trying them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import Budgets, Digests, Plan
from placement.planner import Request, make_plan
from placement.problem import Choice, DenseParts, PlacementProblem
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit


@dataclass(frozen=True)
class Best:
    """The best of all choices. by_attentions: the best with so many attentions on the GPU that take so many bytes."""

    cost: float
    choice: Choice | None
    by_attentions: dict[tuple[int, int], float]


@pytest.fixture(scope="session")
def digests() -> Digests:
    return Digests(pack="a" * 64, row_order="b" * 64, profile="c" * 64)


@pytest.fixture(scope="session")
def make_hardware() -> Callable[..., Hardware]:
    def make(
        gpu: float = 4e9,
        cpu: float = 1e9,
        sync: float = 0.0,
        contention: tuple[float, float] = (1, 1),
        overhead: tuple[float, float] = (1e-4, 2e-4),
        **changes: Any,
    ) -> Hardware:
        figures: dict[str, Any] = {
            "link_bandwidth": 5e8,
            "back_bandwidth": 5e8,
            "hand_over": 1e-3,
            "measured": False,
            **changes,
        }
        units = {
            "gpu": ComputeUnit(gpu, overhead[0], contention[0]),
            "cpu": ComputeUnit(cpu, overhead[1], contention[1]),
        }
        return Hardware(name="a machine", description="", sync=sync, **units, **figures)

    return make


@pytest.fixture(scope="session")
def make_sizes() -> Callable[..., ModelSizes]:
    def make(n_layers: int = 3, n_rows: int = 256, **changes: Any) -> ModelSizes:
        sizes: dict[str, Any] = {
            "row_bytes": 192,
            "gated": True,
            "attention_bytes": tuple(10_000 + layer for layer in range(n_layers)),
            "predictor_bytes": tuple(1_000 + layer for layer in range(n_layers)),
            "embeddings_bytes": 5_000,
            "head_bytes": 6_000,
            "final_norm_bytes": 64,
            "kv_bytes_per_token": 32,
            "buffer_bytes": 777,
        }
        return ModelSizes(n_layers=n_layers, n_rows=n_rows, **{**sizes, **changes})

    return make


@pytest.fixture(scope="session")
def make_frequencies() -> Callable[..., Frequencies]:
    def make(layers: int = 3, rows: int = 256, seed: int = 0, has_predictors: bool = True) -> Frequencies:
        random = np.random.default_rng(seed)
        active = -np.sort(-np.round(random.beta(0.5, 3, (layers, rows)) * 4096) / 4096, axis=1)
        return Frequencies(
            active=active,
            named=np.minimum(1, active * 1.25),
            union4=1 - (1 - active) ** 3,
            union16=1 - (1 - active) ** 9,
            has_predictors=has_predictors,
        )

    return make


@pytest.fixture(scope="session")
def make_request(
    make_sizes: Callable[..., ModelSizes],
    make_frequencies: Callable[..., Frequencies],
    make_hardware: Callable[..., Hardware],
) -> Callable[..., Request]:
    def make(**changes: Any) -> Request:
        usual = {
            "sizes": make_sizes(),
            "frequencies": make_frequencies(),
            "hardware": make_hardware(hand_over=1e-6, overhead=(1e-7, 2e-7)),
            "mode": "predicted",
            "gap": 0.0,
        }
        return Request(**{**usual, **changes})

    return make


@pytest.fixture(scope="session")
def build(make_request: Callable[..., Request], digests: Digests) -> Callable[..., Plan]:
    def make(vram: int, ram: int | None = None, context: int = 64, batch: int = 1, **changes: Any) -> Plan:
        budgets = Budgets(vram, ram, context, batch)
        return make_plan(make_request(**changes), budgets, name="default", digests=digests)

    return make


@pytest.fixture(scope="session")
def small_problem() -> Callable[[int], PlacementProblem]:
    """A problem small enough to try all its choices, of either objective and with any of its parts, by seed."""
    return _small_problem


@pytest.fixture(scope="session")
def try_all() -> Callable[[PlacementProblem], Best]:
    """The best of all choices, written without the problem's own methods."""
    return _try_all


@pytest.fixture(scope="session")
def random_choice() -> Callable[[PlacementProblem, np.random.Generator], Choice]:
    """Any choice of a problem, allowed or not."""
    return _random_choice


@pytest.fixture(scope="session")
def hard() -> PlacementProblem:
    """A problem whose relaxation leaves a few percent between its bound and what greedy finds; dense parts stay put."""
    random = np.random.default_rng(5)
    impact = -np.sort(-random.pareto(1.2, (12, 20)) * random.uniform(0.5, 1.5, (12, 1)), axis=1)
    groups = np.full(20, 64)
    groups[-1] = 8
    attention, ends = (DenseParts(np.zeros(n, dtype=np.int64), np.tile([0.0, 1e3], (n, 1))) for n in (12, 2))
    dense = {"attention": attention, "ends": ends, "tied": False}
    return _impact(impact, (600,) * 12, groups=groups, row_bytes=1, vram=2100, ram=None, **dense)


def _impact(impact: Any, least: tuple[int | None, ...], **more: Any) -> PlacementProblem:
    usual = {"flash": None, "gpu_start": 0.0, "cpu_start": 0.0, "gpu_share": 1.0, "cpu_share": 1.0, "hand_over": 0.0}
    nothing = np.zeros_like(impact)
    return PlacementProblem(**{**usual, "objective": "impact", "gpu": nothing, "cpu": impact, "least": least, **more})


def _small_problem(seed: int) -> PlacementProblem:
    random = np.random.default_rng(seed)
    layers, count = (int(n) for n in random.integers(1, 4, 2))
    flash = random.random() < 0.4 and layers < 3
    groups = np.full(count, 4)
    groups[-1] = random.integers(1, 5)
    heat = random.random((layers, count))
    heat = (-np.sort(-heat, axis=1) if random.random() < 0.8 else heat) * groups
    tied = bool(random.random() < 0.3)
    attention, ends = random.integers(0, 20, layers), random.integers(0, 10, 2) * [1, 1 - tied]
    total = int(groups.sum()) * layers * 2 + int(attention.sum() + ends.sum())
    shared = {
        "groups": groups,
        "row_bytes": 2,
        "tied": tied,
        "vram": int(random.integers(0, 80)),
        "ram": int(random.integers(0, total)) if random.random() < 0.5 else None,
    }
    if random.random() < 0.6:
        contention = 1 + random.random(2)
        if (1 / contention).sum() < 1:
            contention = np.array([2.0, 2.0])
        return PlacementProblem(
            objective="latency",
            gpu=heat * 0.2,
            cpu=heat * random.uniform(0.3, 1.5),
            flash=heat * 3 if flash else None,
            gpu_start=0.05,
            cpu_start=0.02,
            gpu_share=contention[0] * (1 - 1 / contention[1]),
            cpu_share=contention[1] * (1 - 1 / contention[0]),
            hand_over=float(random.choice([0, 0.3])),
            least=(0,) * layers,
            attention=DenseParts(attention, -np.sort(-random.random((layers, 2)), axis=1)),
            ends=DenseParts(ends, random.random((2, 2))),
            **shared,
        )
    least = tuple(None if random.random() < 0.1 else int(n) for n in random.integers(0, groups.sum() + 1, layers))
    return _impact(
        heat,
        least,
        flash=heat * 1e-3 if flash else None,
        attention=DenseParts(attention, np.stack([attention / 2, np.zeros(layers)], axis=1)),
        ends=DenseParts(ends, np.stack([ends / 2, np.zeros(2)], axis=1)),
        **shared,
    )


def _layer_states(problem: PlacementProblem, layer: int) -> list[tuple[int, int, int, float, int, int]]:
    """Unit, cut, kept, cost, bytes on the GPU and bytes in RAM of all that a layer may choose."""
    count, least, states = len(problem.groups), problem.least[layer], []
    for cut in range(count + 1):
        rows = int(problem.groups[:cut].sum())
        if cut and (least is None or rows < least):
            continue
        for kept in range(cut, count + 1) if problem.flash is not None else (count,):
            gpu = problem.gpu[layer, :cut].sum() + problem.gpu_start * (cut > 0)
            cpu = problem.cpu[layer, cut:].sum() + problem.cpu_start * (cut < count)
            cpu += 0 if problem.flash is None else problem.flash[layer, kept:].sum()
            ends = (cpu + problem.gpu_share * gpu, gpu + problem.cpu_share * cpu)
            work = max(ends)
            held = int(problem.groups[cut:kept].sum())
            for unit in (0, 1):
                away = cut < count if unit else cut > 0
                cost = work + problem.hand_over * away + problem.attention.costs[layer, unit]
                dense = int(problem.attention.bytes[layer])
                on_gpu, in_ram = rows * problem.row_bytes + dense * unit, held * problem.row_bytes + dense * (1 - unit)
                states.append((unit, cut, kept, float(cost), on_gpu, in_ram))
    return states


def _try_all(problem: PlacementProblem) -> Best:
    layers = len(problem.least)
    states = [_layer_states(problem, layer) for layer in range(layers)]
    grids = [
        np.meshgrid(*column, indexing="ij") for column in zip(*(zip(*s, strict=True) for s in states), strict=True)
    ]
    units, _, _, costs, on_gpu, in_ram = (np.stack(grid) for grid in grids)
    best, found = math.inf, None
    by_attentions: dict[tuple[int, int], float] = {}
    for embeddings, head in [(0, 0), (1, 1)] if problem.tied else [(0, 0), (0, 1), (1, 0), (1, 1)]:
        ends = np.array([embeddings, head])
        gpu, ram = (side.sum(axis=0) for side in (on_gpu, in_ram))
        gpu, ram = gpu + (problem.ends.bytes * ends).sum(), ram + (problem.ends.bytes * (1 - ends)).sum()
        chain = np.concatenate([np.full_like(units[:1], embeddings), units, np.full_like(units[:1], head)])
        total = costs.sum(axis=0) + problem.hand_over / 2 * np.abs(np.diff(chain, axis=0)).sum(axis=0)
        total = total + problem.ends.costs[0, embeddings] + problem.ends.costs[1, head]
        total[(gpu > problem.vram) | (ram > (math.inf if problem.ram is None else problem.ram))] = math.inf
        taken = (units * problem.attention.bytes.reshape(-1, *[1] * layers)).sum(axis=0)
        for key in set(zip(units.sum(axis=0).ravel().tolist(), taken.ravel().tolist(), strict=True)):
            there = total[(units.sum(axis=0) == key[0]) & (taken == key[1])]
            by_attentions[key] = min(by_attentions.get(key, math.inf), float(there.min()))
        if total.min() < best:
            at = np.unravel_index(int(total.argmin()), total.shape)
            chosen = [layer[i] for layer, i in zip(states, at, strict=True)]
            best = float(total.min())
            found = Choice(*(tuple(state[place] for state in chosen) for place in (1, 2, 0)), embeddings, head)
    return Best(best, found, by_attentions)


def _random_choice(problem: PlacementProblem, random: np.random.Generator) -> Choice:
    count = problem.n_groups
    pairs = np.sort(random.integers(0, count + 1, (problem.n_layers, 2)), axis=1).tolist()
    kept = tuple(k for _, k in pairs) if problem.flash is not None else (count,) * problem.n_layers
    embeddings, head = random.integers(0, 2, 2).tolist()
    return Choice(
        cuts=tuple(c for c, _ in pairs),
        kept=kept,
        attention=tuple(random.integers(0, 2, problem.n_layers).tolist()),
        embeddings=embeddings,
        head=embeddings if problem.tied else head,
    )
