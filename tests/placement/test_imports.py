"""Placement answers fast: nothing in it loads torch, and a plan alone is read without numpy or a solver."""

import pkgutil
import subprocess
import sys

import pytest

import placement

MODULES = [f"placement.{module.name}" for module in pkgutil.iter_modules(placement.__path__)]


def loaded_by(module: str, names: set[str]) -> set[str]:
    code = f"import sys, {module}; print(*sorted({names!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_nothing_loads_torch() -> None:
    assert len(MODULES) > 5
    assert loaded_by(", ".join(MODULES), {"torch", "transformers", "hybrid"}) == set()


@pytest.mark.parametrize("module", ["placement.plan", "placement.plan_file"])
def test_a_plan_is_read_without_numpy_or_a_solver(module: str) -> None:
    assert loaded_by(module, {"numpy", "pulp", "highspy", "safetensors"}) == set()
