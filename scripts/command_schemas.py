"""JSON Schemas of what commands print with --json, made from the dataclasses that they print.

    python scripts/command_schemas.py           # write docs/schemas/*.json
    python scripts/command_schemas.py --check   # say which of them are not what the program prints now

A result's name ends in a number. Fields that are added leave it; what a reader could stumble over counts it up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hybrid.llm import Completion
from hybrid.runtime.summary import RunSummary
from hybrid.stages.budget import BudgetReport
from hybrid.stages.cache_contents import CacheReport, ClearReport
from hybrid.stages.calibrate import CalibrationReport
from hybrid.stages.compare_results import Comparison
from hybrid.stages.doctor import DoctorReport
from hybrid.stages.evaluate import EvaluationReport
from hybrid.stages.hardware import HardwareReport
from hybrid.stages.import_predictors import ImportReport
from hybrid.stages.inspect import InspectReport
from hybrid.stages.pack import PackReport
from hybrid.stages.plan import PlanReport
from hybrid.stages.prepare import PrepareReport
from hybrid.stages.profile_results import ProfileReport
from hybrid.stages.report import ReportResult
from hybrid.stages.simulate import SimulateReport
from placement.shapes import ModelShape
from profiler.hardware import Hardware

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Name of a result -> the dataclass that is printed, or the types of its fields. The comments are the commands.
RESULTS: dict[str, type | dict[str, Any]] = {
    "hybrid.prepare/1": PrepareReport,  # hybrid prepare
    "hybrid.pack/1": PackReport,  # hybrid pack
    "hybrid.profile/1": ProfileReport,  # hybrid profile, hybrid profile merge
    "hybrid.calibrate/1": CalibrationReport,  # hybrid calibrate
    "hybrid.calibrate-budget/1": BudgetReport,  # hybrid calibrate --budget
    "hybrid.import-predictors/1": ImportReport,  # hybrid import-predictors
    "hybrid.hardware/1": HardwareReport,  # hybrid hardware
    "hybrid.machines/1": {"machines": list[Hardware]},  # hybrid hardware --list
    "hybrid.plan/1": PlanReport,  # hybrid plan
    "hybrid.run/1": {  # hybrid run
        "prompt": str,
        "chat": bool,
        "completions": list[Completion],
        "summary": RunSummary,
    },
    "hybrid.chat/1": {  # hybrid chat, a line for each answer
        "answer": str,
        "finish_reason": str,
        "prompt_tokens": int,
        "cached_tokens": int,
        "completion_tokens": int,
        "first_token_seconds": float | None,
        "context": int,
        "forgotten_turns": int,
    },
    "hybrid.compare/1": Comparison,  # hybrid compare
    "hybrid.eval/1": EvaluationReport,  # hybrid eval
    "hybrid.report/1": ReportResult,  # hybrid report
    "hybrid.simulate/1": SimulateReport,  # hybrid simulate
    "hybrid.shapes/1": {"shapes": list[ModelShape]},  # hybrid simulate --list
    "hybrid.inspect/1": InspectReport,  # hybrid inspect
    "hybrid.doctor/1": DoctorReport,  # hybrid doctor
    "hybrid.cache/1": CacheReport,  # hybrid cache list
    "hybrid.cache-clear/1": ClearReport,  # hybrid cache clear
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one result: every field is there, a number that is not finite is null."""
    result = RESULTS[name]
    kind = dataclasses.make_dataclass("Result", list(result.items())) if isinstance(result, dict) else result
    made = _strict(TypeAdapter(kind).json_schema(mode="serialization"))
    fields = {"schema": {"const": name}, **made.pop("properties")}
    made.pop("description", None)
    return {"$schema": DIALECT, **made, "title": name, "properties": fields, "required": list(fields)}


def _strict(schema: Any) -> Any:
    """Every object has all of its fields; numbers may be null."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items() if key not in ("default", "title")}
    if found.get("type") == "number":
        found["type"] = ["number", "null"]
    if isinstance(found.get("properties"), dict):
        found["required"] = list(found["properties"])
        found.pop("additionalProperties", None)  # readers are to expect more
    return found


def schema_path(name: str) -> Path:
    """Where the schema of a result is kept: `hybrid.plan/1` in `plan-1.json`."""
    return FOLDER / f"{name.removeprefix('hybrid.').replace('/', '-')}.json"


def schema_text(name: str) -> str:
    """What that file holds."""
    return json.dumps(schema_of(name), indent=1) + "\n"


def main() -> None:
    """Write the schemas, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    stale = []
    for name in RESULTS:
        path, text = schema_path(name), schema_text(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if parser.parse_args().check:
        raise SystemExit(f"not what commands print now: {', '.join(stale)}" if stale else 0)
    FOLDER.mkdir(exist_ok=True)
    for name in RESULTS:
        schema_path(name).write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
