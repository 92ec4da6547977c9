"""The demo over two units: the host, and the stand-in for a GPU."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.runtime.engine import Engine
from hybrid.stages.opening import open_engine
from hybrid.stages.pack import pack
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as make_plan
from hybrid.stages.shipped import CHECKPOINT
from hybrid.store.directory import ModelDirectory
from placement.plan import Plan

OpenStandIn = Callable[..., Engine]


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
def split_plan(demo: Path) -> Plan:
    """Rows of some layers on both units."""
    return make_plan(demo, PlanSettings(vram=8 << 20, context=256, name="stand-in", kv_format="f32")).plan


@pytest.fixture(scope="session")
def open_stand_in(demo: Path) -> OpenStandIn:
    """`open_stand_in(plan, mode=None, **options)`: an engine on the host and the stand-in, in the plan's mode."""

    def open_one(plan: Plan, mode: str | None = None, **options: Any) -> Engine:
        mode = mode or plan.mode
        plan = dataclasses.replace(plan, mode=mode, sparse=plan.sparse or mode != "dense")
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
