"""What `hybrid doctor` finds of the installation: packages, extension, solvers, cache, figures of the machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid.cache import cache_directory
from hybrid.runtime.this_machine import measure_command, measured_path, this_machine
from hybrid.stages.doctor_machine import Finding
from profiler.artifacts import UserError, explain_os_errors, format_size, free_bytes

OURS = "hybrid-inference"
SHOWN = ("torch", "numpy", "scipy", "pulp", "safetensors", "tokenizers", "sentencepiece")
LITTLE_SPACE = 1 << 30  # bytes of the cache folder's drive


def packages() -> Finding:
    """Versions, and what is missing of what has to be there."""
    ours, missing = importlib.metadata.version(OURS), []
    for name in required(importlib.metadata.requires(OURS) or ()):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    python = f"hybrid {ours}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if missing:
        return Finding(f"{python}; missing: {', '.join(missing)}", broken=f"pip install {' '.join(missing)}")
    versions = []
    for name in SHOWN:
        importlib.import_module(name)  # what is installed may still not load
        versions.append(f"{name} {importlib.metadata.version(name)}")
    return Finding(f"{python}; {', '.join(versions)}")


def required(requirements: Sequence[str]) -> list[str]:
    """Names of the packages that requirements ask for whatever extras are chosen."""
    plain = (text for text in requirements if "extra ==" not in text)
    return [found[0] for text in plain if (found := re.match(r"[A-Za-z0-9._-]+", text))]


def the_name(distributions: Mapping[str, Sequence[str]] | None = None) -> Finding:
    """Whether another package installs a module named `hybrid`. distributions: by module; None asks the environment."""
    known = importlib.metadata.packages_distributions() if distributions is None else distributions
    others = sorted(set(known.get("hybrid", ())) - {OURS})
    where = Path(__file__).resolve().parent.parent
    if not others:
        return Finding(f"{OURS} alone has it, in {where}")
    names = " and ".join(others)
    mend = (
        f"keep them apart: pip uninstall {' '.join(others)}, then install {OURS} anew; or give it its own environment"
    )
    found = f"{names} installs a module of that name too, beside {OURS} in {where}"
    if getattr(sys.modules["hybrid"], "__version__", None) != importlib.metadata.version(OURS):
        return Finding(f"{found}, and has replaced it", broken=mend)
    return Finding(found, better=mend)


def extension() -> Finding:
    """The native operators: whether they load, for which instructions, and why those."""
    from hybrid.ops import _native, cpu

    used, supported, forced = cpu.isa(), _native.supported_isas(), os.environ.get("HYBRID_ISA")
    best = supported[-1]
    if forced and used != best:
        return Finding(f"{used}, which HYBRID_ISA asks for; this CPU can do {best}", better="unset HYBRID_ISA")
    why = "which HYBRID_ISA asks for" if forced else f"the best that this CPU can do of {', '.join(supported)}"
    return Finding(f"native operators for {used}, {why}")


def solvers() -> Finding:
    """Which solvers answer: each is given a problem of two whole numbers."""
    import pulp

    from placement.solvers import CBC

    candidates = {"HiGHS": pulp.HiGHS(msg=False), "CBC": pulp.COIN_CMD(path=str(CBC), msg=False)}
    working = [name for name, solver in candidates.items() if solver.available() and _solves(pulp, solver)]
    found = f"{' and '.join(working) or 'none'} answered"
    if not working:
        return Finding(
            f"{found}; plans are greedy's, which are not proved to be the best", better="pip install highspy"
        )
    if "HiGHS" not in working:
        return Finding(found, advice="pip install highspy: HiGHS answers sooner")
    return Finding(found)


def cache_folder() -> Finding:
    """Where files are kept that can be made anew, and how much room is there."""
    folder = cache_directory()
    chosen = " (HYBRID_CACHE)" if os.environ.get("HYBRID_CACHE") else ""
    try:
        with explain_os_errors("write there", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except UserError as error:
        return Finding(f"{folder}{chosen}: {error}", broken="set HYBRID_CACHE to a folder of your own")
    free = free_bytes(folder)
    found = f"{folder}{chosen}, {format_size(free)} free"
    return Finding(found, better="make room, or set HYBRID_CACHE") if free < LITTLE_SPACE else Finding(found)


def hardware_figures() -> Finding:
    """Whether plans know this machine."""
    try:
        machine = this_machine()
    except UserError as error:
        return Finding(str(error), broken=measure_command(None))
    if machine is None:
        return Finding(
            f"not measured ({measured_path(None)} is not there): plans use nominal ones", better=measure_command(None)
        )
    return Finding(machine.description)


def _solves(pulp: Any, solver: Any) -> bool:
    """Whether a solver finds the most of x + 2y with x + y up to 3 and y up to 2: 5."""
    problem = pulp.LpProblem("check", pulp.LpMaximize)
    x, y = (problem.add_variable(name, lowBound=0, upBound=3, cat=pulp.LpInteger) for name in "xy")
    problem += x + 2 * y
    problem += x + y <= 3
    problem += y <= 2
    try:
        problem.solve(solver)
    except Exception:  # of any kind: a solver that crashes does not answer
        return False
    return round(problem.objective.value() or 0) == 5
