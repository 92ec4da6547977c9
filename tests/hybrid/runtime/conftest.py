"""Models over two units: the demo, whose second one is the stand-in for a GPU, and tiny ones with plans made by hand.

`tiny(family, weight_format="bf16", **config)` is a packed model directory of two layers, made once.
`plan_layers(path, "gpu:0.3g 0.7c", "cpu:1c", ...)` is a plan of these layers, in turn for all of the model's.
`two_units(path, *layers, mode="exact", ...)` is that plan opened on a GPU, or without one with a GPU's operators under
Triton's interpreter;
`one_unit(path, mode="exact", ...)` is the same model on the host.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.runtime import sizes
from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sizes import model_sizes
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings, digests
from hybrid.stages.plan import plan as make_plan
from hybrid.stages.shipped import CHECKPOINT
from hybrid.store.directory import ModelDirectory
from placement.plan import Budgets, LayerPlan, Placement, Plan, Segment, Unit
from placement.planner import finish_plan
from profiler.hardware import read_hardware
from profiler.predictor import PredictorSet
from profiler.predictor_file import read_predictors, write_predictors

OpenStandIn = Callable[..., Engine]
Tiny = Callable[..., Path]
PlanLayers = Callable[..., Plan]
TwoUnits = Callable[..., Engine]
CONTEXT = 64


@pytest.fixture(scope="session")
def demo_in(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`demo_in(weight_format)`: the demo in another format, with its predictors: neurons are the same. Read it only."""

    @functools.cache
    def make(weight_format: str) -> Path:
        path = pack(CHECKPOINT, tmp_path_factory.mktemp("packed") / weight_format, weight_format).destination
        with ModelDirectory.open(demo) as theirs, ModelDirectory.open(path) as ours:
            for name in ("profile_path", "predictors_path"):
                source, destination = (getattr(directory, name)("default") for directory in (theirs, ours))
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, destination)
        return path

    return make


@pytest.fixture(scope="session")
def look_ahead(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with predictors of which some read what the layer before read."""
    path = Path(shutil.copytree(demo, tmp_path_factory.mktemp("ahead") / "demo"))
    file = path / "predictors" / "default.safetensors"
    found = read_predictors(file)
    reads = [layer.reads for layer in found.layers]
    reads = [reads[0], *("previous_ffn_input" if i % 3 else read for i, read in enumerate(reads[1:], 1))]
    layers = (replace(layer, reads=read) for layer, read in zip(found.layers, reads, strict=True))
    write_predictors(file, replace(found, layers=tuple(layers)))
    return path


@pytest.fixture(scope="session")
def split_plan(demo: Path) -> Plan:
    """Rows of some layers on both units."""
    return make_plan(demo, PlanSettings(vram=8 << 20, context=256, name="stand-in", kv_format="f32")).plan


@pytest.fixture(scope="session")
def with_room(demo: Path) -> Callable[[Plan, int], Plan]:
    """`with_room(plan, tokens)`: a plan of the demo with room on the GPU for prompt steps of so many tokens."""

    def change(plan: Plan, tokens: int) -> Plan:
        context, vram = plan.budgets.context, plan.budgets.vram
        with ModelDirectory.open(demo) as directory:
            buffers = sizes.buffer_bytes(directory.spec, tokens, context, sizes.row_bytes(directory))
            buffers += sizes.step_share(directory.spec, directory.weight_format, context, vram + buffers)
        taken = {**plan.bytes, "gpu": {**plan.bytes["gpu"], "buffers": buffers}}
        return replace(plan, bytes=taken, budgets=replace(plan.budgets, vram=vram + buffers))

    return change


@pytest.fixture(scope="session")
def open_stand_in(demo: Path) -> OpenStandIn:
    """`open_stand_in(plan, mode=None, **options)`: an engine on the host and the stand-in, in the plan's mode."""

    def open_one(plan: Plan, mode: str | None = None, **options: Any) -> Engine:
        mode = mode or plan.mode
        plan = replace(plan, mode=mode, sparse=plan.sparse or mode != "dense")
        return open_engine(demo, mode=mode, plan=plan, device="cpu", kv_format="f32", **options)

    return open_one


@pytest.fixture(scope="session")
def without_recorded_step() -> Callable[[Engine], None]:
    """Has an engine compute one operator after the other."""

    def change(engine: Engine) -> None:
        assert engine.machine.recorded is not None
        engine.machine.recorded.close()
        engine.machine.recorded = None

    return change


@pytest.fixture(scope="session")
def tiny(make_family: Any, make_opt: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`tiny(family, weight_format="bf16", **config)`: a packed model directory; the same one for the same arguments."""
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def make(family: str, weight_format: str = "bf16", **config: Any) -> Path:
        if family == "opt":
            sizes = {"hidden_size": 32, "ffn_dim": 72, "num_attention_heads": 2}
            path = make_opt(folder, num_hidden_layers=2, **{**sizes, **config})
        else:
            sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
            wide = {"ffn_hidden_size": 72} if family == "falcon" else {"intermediate_size": 72, "head_dim": 16}
            path = make_family(family, folder, **{**sizes, **wide, **config})
        return pack(path, folder / f"{path.name}-{weight_format}", weight_format).destination

    return make


@pytest.fixture(scope="session")
def plan_layers() -> PlanLayers:
    """A plan made by hand, of a model directory.

    A layer is the unit of its attention, then its rows: shares of them on the gpu (g) or the cpu (c). Options: mode,
    embeddings and head ("gpu" or "cpu"), predictors (counted), vram in bytes.
    """

    def make(
        path: Path,
        *layers: str,
        mode: Any = "dense",
        embeddings: Unit = "cpu",
        head: Unit = "cpu",
        predictors: PredictorSet | None = None,
        vram: int = 1 << 30,
    ) -> Plan:
        with ModelDirectory.open(path) as directory:
            sizes = model_sizes(directory, predictors, CONTEXT, vram, "f32")
            count = directory.spec.n_layers
            placement = Placement(
                mode="dense",
                sparse=False,
                budgets=Budgets(vram=vram, ram=None, context=CONTEXT),
                n_rows=sizes.n_rows,
                embeddings=embeddings,
                head=embeddings if sizes.tied else head,
                layers=tuple(_layer(layers[i % len(layers)], sizes.n_rows) for i in range(count)),
            )
            plan = finish_plan(
                placement,
                name="by-hand",
                digests=digests(directory, directory.row_orders(), None),
                sizes=sizes,
                frequencies=None,
                hardware=read_hardware("cpu-stand-in"),
            )
            return replace(plan, mode=mode, sparse=mode != "dense")

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
    return LayerPlan(attention, tuple(segments))  # type: ignore[arg-type]


DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "interpreter"]


@pytest.fixture(params=DEVICES, scope="session")
def two_units(plan_layers: PlanLayers, request: pytest.FixtureRequest) -> TwoUnits:
    """An engine of a plan made by hand, or of `plan`; beside those of the plan, options are the engine's."""

    def open_one(path: Path, *layers: str, mode: str = "exact", predictors: Any = None, **options: Any) -> Engine:
        places = {name: options.pop(name) for name in ("embeddings", "head", "vram") if name in options}
        plan = options.pop("plan", None) or plan_layers(path, *layers, mode=mode, predictors=predictors, **places)
        known = {"kv_format": "f32", "second_device": request.param, "threads": 1, **options}
        return Engine(ModelDirectory.open(path), EngineOptions(mode=mode, plan=plan, predictors=predictors, **known))

    return open_one


@pytest.fixture(scope="session")
def one_unit() -> TwoUnits:
    """`one_unit(path, mode="exact", ...)`: the same model on the host."""

    def open_one(path: Path, mode: str = "exact", **options: Any) -> Engine:
        known = {"kv_format": "f32", "context": CONTEXT, "threads": 1, **options}
        return Engine(ModelDirectory.open(path), EngineOptions(mode=mode, **known))

    return open_one
