"""Fixtures of the engine's tests: plans made by hand, for layers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.runtime.sizes import model_sizes
from hybrid.stages.plan import digests
from hybrid.store.directory import ModelDirectory
from placement.plan import Budgets, LayerPlan, Placement, Plan, Segment, Unit
from placement.planner import finish_plan
from profiler.hardware import read_hardware
from profiler.predictor import PredictorSet

PlanLayers = Callable[..., Plan]


@pytest.fixture(scope="session")
def plan_layers() -> PlanLayers:
    """`plan_layers(path, "gpu:0.3g 0.7c", "cpu:1c", ...)`: a plan of these layers, in turn for all of the model's.

    A layer is the unit of its attention and its rows, shares of them on the gpu (g) or the cpu (c). Options: mode,
    embeddings and head ("gpu" or "cpu"), context, predictors (counted), kv_format.
    """

    def make(
        path: Path,
        *layers: str,
        mode: str = "dense",
        embeddings: Unit = "cpu",
        head: Unit = "cpu",
        context: int = 64,
        predictors: PredictorSet | None = None,
        kv_format: str = "f32",
    ) -> Plan:
        with ModelDirectory.open(path) as directory:
            vram = 1 << 30
            sizes = model_sizes(directory, predictors, context, vram, kv_format)
            count = directory.spec.n_layers
            placement = Placement(
                mode=mode,
                sparse=mode != "dense",
                budgets=Budgets(vram=vram, ram=None, context=context),
                n_rows=sizes.n_rows,
                embeddings=embeddings,
                head=embeddings if sizes.tied else head,
                layers=tuple(_layer(layers[i % len(layers)], sizes.n_rows) for i in range(count)),
            )
            return finish_plan(
                placement,
                name="by-hand",
                digests=digests(directory, directory.row_orders(), None),
                sizes=sizes,
                frequencies=None,
                hardware=read_hardware("cpu-stand-in"),
            )

    return make


def _layer(text: str, rows: int) -> LayerPlan:
    attention, _, parts = text.partition(":")
    segments, start = [], 0
    shares = parts.split()
    for number, part in enumerate(shares):
        stop = rows if number == len(shares) - 1 else start + max(1, round(float(part[:-1]) * rows))
        gpu = part.endswith("g")
        segments.append(Segment(start, stop, "gpu" if gpu else "ram", "gpu" if gpu else "cpu"))
        start = stop
    return LayerPlan(attention, tuple(segments))
