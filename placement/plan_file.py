"""Plans as files: every type, number and name in one is checked, since a plan may come from anyone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from placement.plan import Budgets, Digests, Expected, LayerPlan, Plan, Segment, SolverReport
from profiler.artifacts import UserError, from_json, read_json, write_json

PLAN_VERSION = 3
WITHOUT_CONTEXT = 2  # the version before bytes had a line for what a process takes of a GPU by being there
MEND = "hybrid plan DIR --vram SIZE"


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan, atomically."""
    write_json(path, "plan", PLAN_VERSION, asdict(plan))


def read_plan(path: Path) -> Plan:
    """Read a plan. One of the version before has no line for the context, which is then 0: nothing was planned for it.

    Raises:
        UserError: missing, damaged, out of range, over its own budgets, or of another format version.
    """
    body = read_json(path, "plan", PLAN_VERSION, MEND, older=(WITHOUT_CONTEXT,))
    try:
        if body["format_version"] == WITHOUT_CONTEXT:
            body["bytes"] = _with_context(body.get("bytes"))
        return _plan({k: v for k, v in body.items() if k not in ("kind", "format_version")})
    except UserError as error:
        raise UserError(f"{path}: {error}; make it anew with: {MEND}") from error


def _plan(body: dict[str, Any]) -> Plan:
    """The plan of `asdict`, each nested object built, and so checked, before the whole."""
    nested = {"budgets": Budgets, "digests": Digests, "expected": Expected}
    built = {k: from_json(nested[k], v, "plan") if k in nested else v for k, v in body.items()}
    built["layers"] = tuple(_layer(layer) for layer in _list("layers", body.get("layers")))
    if body.get("solver") is not None:
        built["solver"] = _solver(body["solver"])
    return from_json(Plan, built, "plan")


def _with_context(taken: Any) -> Any:
    """The bytes of an older plan with the line that they lack, where they are what they should be."""
    if not isinstance(taken, dict) or not all(isinstance(purposes, dict) for purposes in taken.values()):
        return taken
    return {memory: {**purposes, "context": 0} for memory, purposes in taken.items()}


def _layer(value: Any) -> LayerPlan:
    segments = value.get("segments") if isinstance(value, dict) else None
    built = tuple(from_json(Segment, segment, "plan") for segment in _list("segments", segments))
    return from_json(LayerPlan, {**value, "segments": built}, "plan")


def _solver(value: Any) -> SolverReport:
    warnings = tuple(_list("warnings", value.get("warnings") if isinstance(value, dict) else None))
    return from_json(SolverReport, {**value, "warnings": warnings}, "plan")


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"plan: {name} should be a list")
    return value
