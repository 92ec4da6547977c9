"""Small models and machines, made to order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.plan import Digests
from placement.problem import SplitProblem
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit


@pytest.fixture
def digests() -> Digests:
    return Digests(pack="a" * 64, row_order="b" * 64, profile="c" * 64)


@pytest.fixture
def make_hardware() -> Callable[..., Hardware]:
    def make(gpu: float = 4e9, cpu: float = 1e9, sync: float = 0.0, **changes: Any) -> Hardware:
        figures: dict[str, Any] = {
            "link_bandwidth": 5e8,
            "back_bandwidth": 5e8,
            "hand_over": 1e-3,
            "measured": False,
            **changes,
        }
        units = {"gpu": ComputeUnit(gpu, 1e-4), "cpu": ComputeUnit(cpu, 2e-4)}
        return Hardware(name="a machine", description="", sync=sync, **units, **figures)

    return make


@pytest.fixture
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


@pytest.fixture
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


@pytest.fixture
def make_problem() -> Callable[..., SplitProblem]:
    def make(
        values: npt.ArrayLike,
        group_rows: npt.ArrayLike,
        capacity: int,
        required: int = 0,
        least: tuple[int | None, ...] | None = None,
    ) -> SplitProblem:
        array = np.asarray(values, dtype=np.float64)
        rows = np.asarray(group_rows, dtype=np.int64)
        return SplitProblem(array, rows, capacity, required, least or (0,) * len(array))

    return make
