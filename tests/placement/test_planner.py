"""Plans keep their budgets to the byte, use them, and say what is missing where they cannot be made."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from placement.cost import ModelSizes, account
from placement.frequencies import Frequencies
from placement.plan import Budgets, Digests, Plan
from placement.planner import make_plan
from profiler.artifacts import UserError, parse_size
from profiler.hardware import Hardware, read_hardware

Build = Callable[..., Plan]


@pytest.fixture
def build(
    digests: Digests,
    make_sizes: Callable[..., ModelSizes],
    make_frequencies: Callable[..., Frequencies],
    make_hardware: Callable[..., Hardware],
) -> Build:
    def make(vram: int, ram: int | None = None, context: int = 64, **changes: object) -> Plan:
        arguments = {
            "name": "default",
            "digests": digests,
            "sizes": make_sizes(),
            "frequencies": make_frequencies(),
            "hardware": make_hardware(),
            "budgets": Budgets(vram, ram, context),
            "mode": "predicted",
            "gap": 0.0,
        }
        return make_plan(**{**arguments, **changes})  # type: ignore[arg-type]

    return make


def dense_bytes(plan: Plan) -> int:
    return plan.total_bytes("gpu") - plan.bytes["gpu"]["neurons"]


def test_budgets_are_kept_to_the_byte_and_used(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    dense = dense_bytes(build(1 << 20))
    group = 64 * 192
    for room in (0, 1, group - 1, group, group + 1, 3 * group - 1, 3 * group, 7 * group + 500, 12 * group, 13 * group):
        plan = build(dense + room)
        assert plan.total_bytes("gpu") == dense + min(room // group, 12) * group
        assert plan.bytes == account(make_sizes(), plan)
        assert all(plan.gpu_rows(layer) % 64 == 0 for layer in range(3))


def test_one_byte_less_than_the_dense_parts_is_refused_and_named(build: Build) -> None:
    dense = dense_bytes(build(1 << 20))
    assert build(dense).total_bytes("gpu") == dense
    with pytest.raises(UserError) as caught:
        build(dense - 1)
    message = str(caught.value)
    assert f"{dense} bytes are needed, --vram gives {dense - 1}, 1 bytes (1 B) are missing" in message
    for purpose in ("attention", "embeddings", "head", "norms", "predictors", "kv", "buffers"):
        assert re.search(rf"^  {purpose} +\d", message, re.MULTILINE)
    # What the message advises is true, and no more is asked than is needed.
    enough = re.search(r"give --vram (\S+) or more", message)
    assert enough and build(parse_size(enough[1]))
    smaller = re.search(r"--context (\d+) or less", message)
    assert smaller and build(dense - 1, context=int(smaller[1]))
    with pytest.raises(UserError):
        build(dense - 1, context=int(smaller[1]) + 1)


def test_no_context_is_advised_where_none_would_help(build: Build) -> None:
    with pytest.raises(UserError) as caught:
        build(5_000)
    assert "--context" not in str(caught.value)


def test_ram_is_kept_to_the_byte(build: Build) -> None:
    roomy = build(1 << 20)
    dense, buffers = dense_bytes(roomy), roomy.bytes["ram"]["buffers"]
    group = 64 * 192
    plan = build(dense + 8 * group, ram=buffers + 4 * group)
    assert (plan.total_bytes("gpu"), plan.total_bytes("ram")) == (dense + 8 * group, buffers + 4 * group)
    with pytest.raises(UserError, match="192 bytes are missing"):
        build(dense + 8 * group, ram=buffers + 4 * group - 1)
    # A layer that is all on the GPU would leave RAM untouched: the buffers alone remain.
    assert build(dense + 12 * group, ram=buffers).total_bytes("ram") == buffers
    with pytest.raises(UserError, match=r"2357 bytes are needed|bytes are missing"):
        build(dense + 12 * group, ram=buffers - 1)


def test_without_a_gpu_everything_is_in_ram(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    plan = build(0, mode="exact")
    assert plan.total_bytes("gpu") == 0
    assert (plan.embeddings, plan.head, plan.sparse, plan.solver) == ("cpu", "cpu", True, None)
    assert not any(layer.crosses for layer in plan.layers)
    assert plan.expected.transfer_seconds == plan.expected.gpu_seconds == 0
    needed = plan.total_bytes("ram")
    assert build(0, ram=needed, mode="exact").bytes == plan.bytes
    with pytest.raises(UserError, match=rf"--ram gives {needed - 1}, 1 bytes"):
        build(0, ram=needed - 1, mode="exact")


def test_the_hottest_rows_are_on_the_gpu(build: Build, make_frequencies: Callable[..., Frequencies]) -> None:
    frequencies = make_frequencies()
    dense = dense_bytes(build(1 << 20))
    plan = build(dense + 6 * 64 * 192)
    groups = np.sort(frequencies.active.reshape(12, 64).sum(axis=1))
    assert plan.solver and plan.solver.value == pytest.approx(groups[-6:].sum())
    for number, layer in enumerate(plan.layers):
        assert layer.attention == "gpu"
        assert [(s.resident, s.computed_on) for s in layer.segments] in (
            [("gpu", "gpu"), ("ram", "cpu")],
            [("gpu", "gpu")],
            [("ram", "cpu")],
        )
        assert plan.gpu_rows(number) == sum(s.stop for s in layer.segments if s.resident == "gpu")


def test_the_mode_changes_times_and_not_cuts(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    sizes = make_sizes(predictor_bytes=(1, 1, 1))
    plans = {mode: build(100_000, sizes=sizes, mode=mode) for mode in ("dense", "exact", "predicted")}
    assert plans["dense"].layers == plans["exact"].layers == plans["predicted"].layers
    read = {mode: plan.expected.gpu_bytes + plan.expected.cpu_bytes for mode, plan in plans.items()}
    assert read["predicted"] < read["exact"] < read["dense"]


@pytest.mark.parametrize("gpu", [1e9, 5e8])
def test_a_gpu_that_is_no_faster_gets_no_neuron_and_the_report_says_so(
    build: Build, make_hardware: Callable[..., Hardware], gpu: float
) -> None:
    plan = build(1 << 20, hardware=make_hardware(gpu=gpu))
    assert plan.bytes["gpu"]["neurons"] == 0
    assert plan.solver and plan.solver.warnings == (
        f"no neuron is on the GPU: its memory ({gpu / 1e9:g} GB/s) is not faster than the CPU's (1 GB/s)",
    )


def test_layers_too_small_to_repay_a_synchronisation_get_no_neuron(
    build: Build, make_hardware: Callable[..., Hardware]
) -> None:
    plan = build(1 << 20, hardware=make_hardware(sync=1.0))
    assert plan.bytes["gpu"]["neurons"] == 0
    assert plan.solver and "too few to repay a synchronisation" in plan.solver.warnings[0]


def test_every_layer_on_the_gpu_repays_its_synchronisation(
    build: Build, make_hardware: Callable[..., Hardware]
) -> None:
    saved_by_a_row = 192 / 1e9 - 192 / 4e9
    hardware = make_hardware(sync=129 * saved_by_a_row)
    dense = dense_bytes(build(1 << 20))
    for groups in range(13):
        plan = build(dense + groups * 64 * 192, hardware=hardware)
        rows = [plan.gpu_rows(layer) for layer in range(3)]
        assert all(n == 0 or n >= 192 for n in rows)
        assert (sum(rows) > 0) == (groups >= 3)


def test_a_layer_that_never_fired_is_placed_last(build: Build, make_frequencies: Callable[..., Frequencies]) -> None:
    frequencies = make_frequencies()
    silent = frequencies.active.copy()
    silent[1] = 0
    frequencies = replace(frequencies, active=silent)
    dense = dense_bytes(build(1 << 20))
    plan = build(dense + 8 * 64 * 192, frequencies=frequencies)
    assert [plan.gpu_rows(layer) for layer in range(3)] == [256, 0, 256]
    assert build(dense + 9 * 64 * 192, frequencies=frequencies).gpu_rows(1) == 64


def test_a_short_last_group_goes_whole(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    random = np.random.default_rng(0)
    active = -np.sort(-random.random((2, 100)), axis=1)
    frequencies = Frequencies(active, active, active, active, True)
    for vram in range(38_000, 80_000, 1_500):
        plan = build(vram, sizes=make_sizes(2, 100), frequencies=frequencies)
        assert all(plan.gpu_rows(layer) in (0, 64, 100) for layer in range(2))
        assert plan.total_bytes("gpu") <= vram


def test_a_profile_of_another_shape_is_refused(build: Build, make_frequencies: Callable[..., Frequencies]) -> None:
    with pytest.raises(UserError, match="profile it anew"):
        build(1 << 20, frequencies=make_frequencies(2))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_7b_model_is_solved_or_its_gap_stated(digests: Digests, share: float, solver: str) -> None:
    layers, rows = 32, 11008
    random = np.random.default_rng(1)
    skew = random.uniform(0.3, 3, (layers, 1))
    active = -np.sort(-np.minimum(1, random.pareto(1, (layers, rows)) * 0.02 * skew), axis=1)
    sizes = ModelSizes(
        n_layers=layers,
        n_rows=rows,
        row_bytes=3 * 4096 * 2,
        gated=True,
        attention_bytes=(4 * 4096 * 4096 * 2,) * layers,
        predictor_bytes=(0,) * layers,
        embeddings_bytes=32000 * 4096 * 2,
        head_bytes=32000 * 4096 * 2,
        kv_bytes_per_token=2 * 4096 * 2,
        buffer_bytes=64 << 20,
    )
    dense = sum(sizes.attention_bytes) + 2 * sizes.head_bytes + layers * 2048 * 16384 + (64 << 20)
    vram = dense + int(share * layers * rows * sizes.row_bytes)
    plan = make_plan(
        name="default",
        digests=digests,
        sizes=sizes,
        frequencies=Frequencies(active, active, active, active, False),
        hardware=read_hardware("rtx4060-laptop"),
        budgets=Budgets(vram, None, 2048),
        mode="exact",
        time_limit=30,
        solver=solver,  # type: ignore[arg-type]
    )
    assert plan.solver and plan.solver.gap is not None
    assert plan.solver.gap <= 1e-3 or plan.solver.status == "time limit"
    assert 0 <= vram - plan.total_bytes("gpu") < 64 * sizes.row_bytes
