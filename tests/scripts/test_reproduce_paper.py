"""The papers' rows: every input has a source, two constants come from one row, and the cost model does what it did."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from papers.inputs import Constants, Inputs
from papers.rows import Case, Reproduction, fit, reproduce
from papers.tables import groups, notes, rows_table, show

from placement.cost import account
from profiler.artifacts import UserError

INPUTS = Inputs.published()
ROWS = INPUTS.body["rows"]


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce(INPUTS)


def figures_without_source(value: Any, place: str = "") -> Iterator[str]:
    """Where a number stands in no group that names its source."""
    if isinstance(value, dict):
        numbers = [name for name, one in value.items() if isinstance(one, (int, float))]
        source = value.get("source")
        if numbers and not (isinstance(source, str) and len(source) > 10):
            yield f"{place}: {numbers}"
        for name, one in value.items():
            yield from figures_without_source(one, f"{place}/{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from figures_without_source(one, f"{place}[{number}]")


def test_every_input_and_every_result_has_a_source() -> None:
    without = {key: value for key, value in INPUTS.body.items() if key != "alternatives"}
    assert list(figures_without_source(without)) == []
    for group in [*(group for _, _, group in groups(INPUTS.body)), *ROWS]:
        assert group["source"].split(",")[0].split(":")[0].split(" ")[0].strip() in (
            *INPUTS.body["papers"],
            *("derived", "assumed", "data"),
            *("facebook/opt-6.7b", "facebook/opt-13b", "facebook/opt-30b", "tiiuae/falcon-40b"),
            *("SparseLLM/ReluLLaMA-7B", "SparseLLM/ReluLLaMA-13B", "SparseLLM/ReluLLaMA-70B"),
            "PowerInfer/Bamboo-base-v0_1",
        )


def test_a_figure_without_a_source_would_be_found() -> None:
    body = copy.deepcopy(INPUTS.body)
    del body["machines"]["pc-low"]["link"]["source"]
    assert list(figures_without_source(body["machines"])) == ["/pc-low/link: ['link_bandwidth']"]


def test_all_rows_are_computed(found: Reproduction) -> None:
    assert [row.name for row in found.rows] == [row["name"] for row in ROWS]
    assert len({row.name for row in found.rows}) == len(ROWS) == 24
    assert all(row.ours > 0 for row in found.rows)
    published = {row["theirs"] for row in ROWS}
    assert {1.1, 12.0, 3.32, 7.80, 11.69, 5.73, 4.85, 4.69, 4.38, 1.87, 2.60, 3.62, 4.71} < published
    assert {49.91, 14.38, 321.63, 56.48, 92.76, 37.17, 2196, 1090, 738, 164, 87} < published


def test_two_constants_are_fitted_on_one_row_alone(found: Reproduction) -> None:
    fitted = [row for row in ROWS if row["fitted"]]
    assert len(fitted) == 2 and len({(row["machine"], row["model"], row["workload"]) for row in fitted}) == 1
    for row in fitted:
        assert Case(INPUTS, row).value(found.constants) == pytest.approx(row["theirs"], rel=1e-4)
    # What the other rows say has no part in it.
    others = copy.deepcopy(INPUTS.body)
    for row in others["rows"]:
        row["theirs"] *= 1.0 if row["fitted"] else 3.0
    assert fit(Inputs(others)) == found.constants
    assert 0 < found.constants.memory_share < 1 and 0 < found.constants.hand_over < 0.01


def test_rows_are_as_near_as_they_were(found: Reproduction) -> None:
    assert found.median_error < 0.20
    assert found.median_factor < 1.22
    assert len(found.missed) <= 2
    assert max(row.factor for row in found.tested) < 2.0


def test_what_misses_is_explained_and_what_is_explained_misses(found: Reproduction) -> None:
    assert {row.name for row in found.missed} == {row["name"] for row in ROWS if row["explanation"]}
    printed = "\n".join(notes(INPUTS, found, markdown=True))
    assert all(row.explanation in printed for row in found.missed)


def test_each_step_of_the_ablation_is_faster_than_the_one_before(found: Reproduction) -> None:
    for model in ("Falcon-40B, +", "Bamboo-7B, +"):
        steps = [row.ours for row in found.rows if row.name.startswith(model)]
        assert len(steps) == 3 and steps == sorted(steps) and steps[0] > 1


@pytest.mark.parametrize("row", [row for row in ROWS if "engine" in row], ids=lambda row: row["name"])
def test_engines_keep_the_memory_that_they_are_given(row: dict[str, Any]) -> None:
    case = Case(INPUTS, row)
    for engine in [*case.engines, *case.baselines]:
        taken = account(engine.sizes, engine.placement)["gpu"]
        assert sum(taken.values()) <= engine.placement.budgets.vram
        rows_on_gpu = sum(engine.placement.gpu_rows(layer) for layer in range(engine.sizes.n_layers))
        assert rows_on_gpu or any(layer.attention == "cpu" for layer in engine.placement.layers)


def test_models_that_fit_are_those_that_must_be_split() -> None:
    row = next(row for row in ROWS if row["quantity"] == "average speed-up")
    assert Case(INPUTS, row).models == row["model"]
    assert not INPUTS.fits_when_split("pc-low", "falcon-40b")
    assert not INPUTS.fits_when_split("pc-high", "bamboo-7b")


def test_inputs_that_nothing_fits_are_refused_and_told() -> None:
    tight = INPUTS.changed({"models": {"predictor_share": 0.07}})
    with pytest.raises(UserError, match="no constant"):
        fit(tight)
    assert INPUTS.shape("opt-30b").predictor_share == 0.05


def test_alternatives_change_what_they_name() -> None:
    constants = Constants(1.0, 0.0)
    faster = INPUTS.changed({"scale_machines": {"cpu_flops": 3}, "workloads": {"longest": "middle"}})
    old, new = (inputs.hardware("pc-high", constants) for inputs in (INPUTS, faster))
    assert new.cpu.flops == pytest.approx(3 * (old.cpu.flops or 0)) and new.gpu == old.gpu
    assert faster.workload("longest", 1) == INPUTS.workload("middle", 1)


def test_tables_are_markdown_where_asked(found: Reproduction) -> None:
    lines = show(rows_table(found), markdown=True).split("\n")
    assert len(lines) == len(ROWS) + 2 and all(line.startswith("| ") for line in lines)
    assert lines[1].count("---:") == 5


def test_the_script_prints_one_object(scripts: Path) -> None:
    done = subprocess.run(
        [sys.executable, scripts / "reproduce_paper.py", "--json"], capture_output=True, text=True, check=True
    )
    body = json.loads(done.stdout)
    assert len(body["rows"]) == len(ROWS) and set(body["constants"]) == {"memory_share", "hand_over"}
