"""Plans as files: what is written is read back, and what is damaged, by accident or not, is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.plan import MOST_ROWS, PURPOSES, Budgets, Digests, Expected, LayerPlan, Plan, Segment, SolverReport
from placement.plan_file import PLAN_VERSION, read_plan, write_plan
from profiler.artifacts import UserError

ABSENT = object()
digest = st.text("0123456789abcdef", min_size=64, max_size=64)
number = st.floats(0, 1e30)
expected = st.builds(Expected, *[number] * 10)
solver = st.builds(
    SolverReport,
    st.sampled_from(["highs", "cbc", "greedy"]),
    st.sampled_from(["optimal", "time limit", "unproved"]),
    st.none() | number,
    number,
    number,
    st.sampled_from(["latency", "impact"]),
    warnings=st.lists(st.text(), max_size=3).map(tuple),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    sparse = draw(st.booleans())
    places = [("gpu", "gpu"), ("ram", "cpu"), ("flash", "cpu")] + ([] if sparse else [("ram", "gpu")])
    n_rows = draw(st.integers(1, MOST_ROWS))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        ends = sorted({n_rows, *draw(st.lists(st.integers(1, n_rows), max_size=4))})
        segments = [Segment(a, b, *draw(st.sampled_from(places))) for a, b in zip([0, *ends], ends, strict=False)]
        layers.append(LayerPlan(draw(st.sampled_from(["gpu", "cpu"])), tuple(segments)))
    taken = {memory: {p: draw(st.integers(0, 1 << 40)) for p in PURPOSES} for memory in ("gpu", "ram", "flash")}
    return Plan(
        mode=draw(st.sampled_from(["dense", "exact", "predicted", "threshold"])) if sparse else "dense",
        sparse=sparse,
        budgets=Budgets(1 << 44, draw(st.sampled_from([None, 1 << 44])), draw(st.integers(1, 1 << 24)), 3),
        n_rows=n_rows,
        embeddings=draw(st.sampled_from(["gpu", "cpu"])),
        head=draw(st.sampled_from(["gpu", "cpu"])),
        layers=tuple(layers),
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)),
        digests=Digests(draw(digest), draw(digest), draw(st.none() | digest)),
        hardware=draw(st.text(min_size=1, max_size=200)),
        hardware_digest=draw(digest),
        bytes=taken,
        expected=draw(expected),
        solver=draw(st.none() | solver),
    )


@settings(deadline=None, max_examples=60)
@given(plans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_plan(path, plan)
    assert read_plan(path) == plan


def test_a_plan_of_the_version_before_is_read_and_has_planned_no_context() -> None:
    older = read_plan(Path(__file__).parents[1] / "artifacts/versions/plan_2.json")
    assert {memory: taken["context"] for memory, taken in older.bytes.items()} == {"gpu": 0, "ram": 0, "flash": 0}
    assert older.total_bytes("gpu") == 4096 + 2048 + 1024 + 6 * 96
    assert older.gpu_rows(0) == 6


@pytest.mark.parametrize("value", [None, [], "x", {"gpu": 3}, {"gpu": {}, "ram": {}, "flash": {}}])
def test_damaged_bytes_of_an_older_plan_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "older.json"
    shutil.copy(Path(__file__).parents[1] / "artifacts/versions/plan_2.json", path)
    damage(path, "bytes", value)
    with pytest.raises(UserError, match=r"older\.json.*hybrid plan DIR --vram SIZE"):
        read_plan(path)


@pytest.fixture(scope="module")
def a_plan(build: Callable[..., Plan]) -> Plan:
    return build(70_000, 200_000)


@pytest.fixture
def written(tmp_path: Path, a_plan: Plan) -> Path:
    assert a_plan.gpu_rows(0) and a_plan.gpu_rows(0) < 256
    path = tmp_path / "default.json"
    write_plan(path, a_plan)
    return path


def damage(path: Path, where: str, value: Any) -> None:
    body = json.loads(path.read_text())
    *parents, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    target = body
    for key in parents:
        target = target[key]
    if value is ABSENT:
        del target[last]
    else:
        target[last] = value
    path.write_text(json.dumps(body))


WRONG_TYPES = [None, True, "x", [], {}, float("nan"), float("inf"), -1, 1e308, 10**400]


@pytest.mark.parametrize("value", [ABSENT, *WRONG_TYPES], ids=lambda v: repr(v)[:12] if v is not ABSENT else "absent")
@pytest.mark.parametrize(
    "where",
    [
        "n_rows",
        "budgets",
        "budgets.vram",
        "budgets.context",
        "budgets.batch",
        "bytes.gpu",
        "bytes.ram.neurons",
        "expected",
        "expected.token_seconds",
        "digests",
        "digests.pack",
        "hardware_digest",
        "layers",
        "layers.0.attention",
        "layers.0.segments",
        "layers.0.segments.0",
        "layers.0.segments.1.start",
        "layers.0.segments.0.stop",
        "layers.0.segments.0.resident",
        "solver",
        "solver.status",
        "solver.seconds",
        "solver.warnings",
        "embeddings",
        "head",
        "mode",
    ],
)
def test_hostile_values_are_refused(written: Path, where: str, value: Any) -> None:
    if (where, value) in [("solver.warnings", []), ("solver", None), ("solver", ABSENT)]:
        return  # as it should be
    damage(written, where, value)
    with pytest.raises(UserError, match=r"default\.json.*hybrid plan DIR --vram SIZE"):
        read_plan(written)


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("layers.0.segments.1.start", 65, "a segment ends at row"),
        ("layers.0.segments.0.start", 1, "start at row 0"),
        ("layers.0.segments.1.stop", 255, "do not cover its 256 rows"),
        ("layers.0.segments.1.stop", 257, "do not cover its 256 rows"),
        ("layers.0.segments.1.stop", 3, "segment's stop is 3"),
        ("layers.0.segments.0.computed_on", "cpu", "resident on gpu cannot be computed on the cpu"),
        ("layers.0.segments.1.computed_on", "gpu", "streams rows to the GPU"),
        ("layers.0.segments.1.resident", "tape", "gpu or ram or flash"),
        ("layers", [], "the number of layers is 0"),
        ("budgets.vram", 1000, "exceed their budget"),
        ("budgets.ram", 1000, "exceed their budget"),
        ("bytes.gpu.kv", 1 << 61, "bytes of kv on gpu"),
        ("bytes.gpu.toys", 1, "should be given for attention"),
        ("bytes.tape", {}, "given for gpu, ram and flash"),
        ("sparse", False, "false only where the mode is dense"),
        ("name", "../../etc/passwd", "is not a name"),
        ("name", ".hidden", "is not a name"),
        ("name", "a\n", "is not a name"),
        ("digests.pack", "A" * 64, "is not a pack digest"),
        ("solver.gap", -0.5, "gap is -0.5"),
        ("solver.objective", "speed", "objective is 'speed'"),
        ("solver.warnings", [1], "warnings should be a few texts"),
        ("extra", 1, "'extra' is not known"),
        ("kind", "profile", "is not a plan file"),
        ("format_version", PLAN_VERSION + 1, "newer than this program reads"),
    ],
)
def test_what_does_not_hold_together_is_refused(written: Path, where: str, value: Any, says: str) -> None:
    damage(written, where, value)
    with pytest.raises(UserError, match=says):
        read_plan(written)


def test_a_plan_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b'{"kind": "plan"\xff')
    with pytest.raises(UserError, match="not valid JSON"):
        read_plan(tmp_path / "bad.json")
