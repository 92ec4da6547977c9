"""Plans that were made for a command and are kept in the cache, so that the next one need not wait for a solver.

A plan is found by a digest of everything that it follows from, so that it can be of no other model, machine, budget or
version of this program. What is kept can be made anew: a file that is damaged, or a cache that cannot be written, costs
the time of solving and nothing else.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hybrid.cache import cache_directory
from placement.plan import Budgets, Digests, Plan
from placement.plan_file import read_plan, write_plan
from placement.planner import Request
from profiler.artifacts import UserError, digest_json

FOLDER = "plans"  # of the cache
MOST_KEPT = 64  # plans of one model
NAME = "automatic"


def kept_path(request: Request, budgets: Budgets, digests: Digests) -> Path:
    """Where the plan of a request is kept, or would be: a folder for each packed model."""
    follows_from = [
        version("hybrid-inference"),
        asdict(digests),
        asdict(request.sizes),
        asdict(budgets),
        request.hardware.digest,
        [request.mode, request.objective, request.gap],
    ]
    return cache_directory() / FOLDER / digests.pack[:16] / f"{digest_json(follows_from)[:32]}.json"


def find_kept(path: Path, budgets: Budgets, digests: Digests) -> Plan | None:
    """The plan at a path of `kept_path`; None where there is none that can be used."""
    with contextlib.suppress(UserError):
        plan = read_plan(path)
        if (plan.budgets, plan.digests) == (budgets, digests):
            return plan
    return None


def keep(path: Path, plan: Plan) -> None:
    """Keep a plan at its path, where the cache can be written; the oldest ones of its model make room."""
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_plan(path, plan)
        kept = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-MOST_KEPT]:
            file.unlink(missing_ok=True)
