"""What `--json` prints: one object that opens with its schema's name, nothing beside it, as the documents say.

Every JSON result of every test is held to its schema (`results_as_documented`); here are those that no other test has.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

from hybrid import display

ROOT = Path(__file__).resolve().parent.parent.parent
QUICKLY = ("--tokens", 3000, "--rank", 4, "--steps", 5)  # of `hybrid profile`


@pytest.fixture
def told(hybrid):
    """`told(*arguments)`: the object that a command prints."""

    def run(*arguments):
        code, out, err = hybrid(*arguments, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert next(iter(found)) == "schema"
        return found

    return run


@pytest.fixture
def text(tmp_path, heldout):
    path = tmp_path / "text.py"
    path.write_text(heldout[:30_000], encoding="utf-8")
    return path


def test_pack_and_inspect(told, opt_checkpoint, tmp_path):
    assert told("pack", opt_checkpoint, tmp_path / "packed")["schema"] == "hybrid.pack/1"
    found = told("inspect", tmp_path / "packed", "--verify")
    assert found["schema"] == "hybrid.inspect/1" and found["verified"]


def test_profile_merge_plan_and_report(told, demo_copy, text):
    found = told("profile", demo_copy, "--text", text, *QUICKLY)
    assert found["schema"] == "hybrid.profile/1" and len(found["layers"]) == 6
    text.write_text(text.read_text()[:9000:-1])
    told("profile", demo_copy, "--text", text, "--tokens", 1000, "--predictors", "default", "--name", "other")
    assert told("profile", "merge", demo_copy, "default", "other", "--name", "all")["name"] == "all"
    found = told("plan", demo_copy, "--vram", "7MiB", "--hardware", "cpu-stand-in", "--explain")
    assert found["schema"] == "hybrid.plan/1" and found["plan"]["budgets"]["vram"] == 7 << 20
    assert told("report", demo_copy, "-o", demo_copy / "report.html")["schema"] == "hybrid.report/1"
    assert "default" in told("inspect", demo_copy)["plans"]


def test_run(told, demo):
    options = ("-n", 4, "--temperature", 1, "--logprobs", 2, "--second-device", "cpu", "--vram", "7MiB")
    found = told("run", demo, "class ", *options, "--n", 2, "--chat")
    assert found["chat"] and len(found["completions"]) == 2
    assert found["summary"]["memory"]["gpu"]


def test_calibrate_and_eval(told, make_llama, tmp_path, text):
    from hybrid.stages.pack import pack

    smooth = pack(make_llama(tmp_path, hidden_act="silu"), tmp_path / "smooth").destination
    assert told("calibrate", smooth, "--text", text, "--tokens", 2000)["schema"] == "hybrid.calibrate/1"
    found = told("eval", smooth, "--text", text, "--tokens", 600, "--context", 128)
    assert found["schema"] == "hybrid.eval/1" and found["evaluation"]["modes"]


def test_what_is_known_without_a_model(told):
    assert told("hardware", "--list")["machines"]
    assert told("simulate", "--list")["shapes"]
    assert told("simulate", "--shape", "opt-6.7b", "--hardware", "rtx4060-laptop")["schema"] == "hybrid.simulate/1"


def test_the_documents_have_every_schema_and_no_other():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "command_schemas.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stderr}make them anew with: python scripts/command_schemas.py"
    printed = {
        name
        for path in (ROOT / "hybrid").glob("*.py")
        for name in re.findall(r'"(hybrid\.[a-z-]+/[0-9]+)"', path.read_text(encoding="utf-8"))
    }
    kept = {f"hybrid.{path.stem[::-1].replace('-', '/', 1)[::-1]}" for path in (ROOT / "docs" / "schemas").iterdir()}
    assert printed == kept


class Colour(Enum):
    red = "red"


@dataclasses.dataclass
class Report:
    path: Path
    figures: tuple[float, ...]
    colour: Colour
    by_layer: dict[int, str]


def test_values_are_plain_json():
    report = Report(Path("a/b"), (1.5, math.inf, math.nan), Colour.red, {3: "x"})
    plain = {"path": "a/b", "figures": [1.5, None, None], "colour": "red", "by_layer": {"3": "x"}}
    assert display.plain(report) == plain
    with pytest.raises(TypeError, match="bytes is no part of a result"):
        display.plain({"data": b""})
