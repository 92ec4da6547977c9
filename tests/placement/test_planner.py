"""Plans keep their budgets to the byte, use them, and say what is missing where they cannot be made."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement.cost import ModelSizes, account
from placement.frequencies import Frequencies
from placement.plan import MOST_BYTES, Budgets, Plan
from profiler.artifacts import UserError
from profiler.hardware import Hardware
from profiler.speeds import FlashSpeed

Build = Callable[..., Plan]
GROUP = 64 * 192
BUFFERS = 777
ROOMY = 1 << 20
DRIVE = (FlashSpeed(192, 1, 1e7),)


def warnings_of(plan: Plan) -> tuple[str, ...]:
    assert plan.solver is not None
    return plan.solver.warnings


def dense_bytes(plan: Plan) -> int:
    """What plans take beside neurons, wherever it is."""
    taken = {memory: plan.total_bytes(memory) - plan.bytes[memory]["neurons"] for memory in ("gpu", "ram")}  # type: ignore[arg-type]
    return sum(taken.values()) - plan.bytes["ram"]["buffers"]


def test_with_room_for_all_the_faster_unit_has_all(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    plan = build(ROOMY)
    assert all(layer.attention == "gpu" and not layer.crosses for layer in plan.layers)
    assert [plan.gpu_rows(layer) for layer in range(3)] == [256] * 3
    assert (plan.head, plan.bytes) == ("gpu", account(make_sizes(), plan))
    assert plan.solver and (plan.solver.name, plan.solver.status, warnings_of(plan)) == ("greedy", "optimal", ())


@pytest.mark.parametrize("vram", [40_000, 90_000, 140_000])
def test_what_the_process_takes_of_the_gpu_comes_off_its_budget(
    build: Build, make_sizes: Callable[..., ModelSizes], vram: int
) -> None:
    context = 12_345
    bare, plan = build(vram), build(vram + context, sizes=make_sizes(context_bytes=context))
    assert plan.layers == bare.layers
    assert plan.bytes["gpu"] == {**bare.bytes["gpu"], "context": context}
    assert plan.bytes["ram"] == bare.bytes["ram"]
    assert plan.total_bytes("gpu") <= vram + context


def test_a_budget_that_the_process_takes_whole_leaves_the_gpu_unused_and_says_why(
    build: Build, make_sizes: Callable[..., ModelSizes]
) -> None:
    plan = build(10_000, sizes=make_sizes(context_bytes=10_000))
    assert plan.total_bytes("gpu") == 0
    assert any("--vram leaves 0 B beside 777 B of buffers and 9.8 KiB of CUDA context" in w for w in warnings_of(plan))
    with pytest.raises(UserError, match=r"beside 777 B of work buffers on each unit and 9\.8 KiB of CUDA context"):
        build(10_000, 20_000, sizes=make_sizes(context_bytes=10_000))


def test_impact_takes_the_dense_parts_and_then_the_hottest_groups(
    build: Build, make_frequencies: Callable[..., Frequencies]
) -> None:
    full = dense_bytes(build(ROOMY, objective="impact")) - 5_000  # the embeddings are not read whole, and may stay
    groups = np.sort(make_frequencies().active.reshape(12, 64).sum(axis=1))
    for room in (0, 1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP - 1, 7 * GROUP + 500, 12 * GROUP, 13 * GROUP):
        plan = build(full + room, objective="impact")
        count = min(room // GROUP, 12)
        assert plan.total_bytes("gpu") - plan.bytes["gpu"]["embeddings"] == full + count * GROUP
        assert all(plan.gpu_rows(layer) % 64 == 0 for layer in range(3))
        assert plan.solver and plan.solver.cost == pytest.approx(groups[: 12 - count].sum(), abs=1e-9)


def test_ram_is_kept_to_the_byte(build: Build) -> None:
    dense = dense_bytes(build(ROOMY)) - BUFFERS
    everything = dense + 12 * GROUP
    for on_gpu in (0, 1, 5, 12):
        vram, ram = BUFFERS + dense + on_gpu * GROUP, BUFFERS + (12 - on_gpu) * GROUP
        plan = build(vram, ram)
        assert plan.total_bytes("gpu") + plan.total_bytes("ram") == everything + 2 * BUFFERS
        assert (plan.total_bytes("gpu"), plan.total_bytes("ram")) == (vram, ram)
        with pytest.raises(UserError, match=r"1 bytes \(1 B\) are missing") as caught:
            build(vram, ram - 1)
        if on_gpu < 12:
            assert "give more of either, a smaller --context, or figures of a drive" in str(caught.value)


def test_too_little_ram_for_the_buffers_alone_is_said(build: Build) -> None:
    assert build(ROOMY, BUFFERS).total_bytes("ram") == BUFFERS
    with pytest.raises(UserError, match=r"777 bytes are needed, --ram gives 776, 1 bytes \(1 B\) are missing"):
        build(ROOMY, BUFFERS - 1)


def test_without_a_gpu_everything_is_in_ram(build: Build) -> None:
    plan = build(0, mode="exact")
    assert plan.total_bytes("gpu") == 0
    assert (plan.embeddings, plan.head, plan.sparse) == ("cpu", "cpu", True)
    assert not any(layer.crosses for layer in plan.layers)
    assert plan.expected.transfer_seconds == plan.expected.gpu_seconds == 0
    assert warnings_of(plan) == ()
    needed = plan.total_bytes("ram")
    assert build(0, needed, mode="exact").bytes == plan.bytes
    with pytest.raises(UserError, match=r"1 bytes \(1 B\) are missing"):
        build(0, needed - 1, mode="exact")


@pytest.mark.parametrize("vram", [1, BUFFERS - 1, BUFFERS, BUFFERS + GROUP - 1])
def test_a_gpu_too_small_for_a_group_is_not_used_without_a_word(build: Build, vram: int) -> None:
    plan = build(vram)
    assert plan.bytes["gpu"]["neurons"] == 0
    assert (plan.total_bytes("gpu") == 0) == (vram <= BUFFERS)
    (warning,) = warnings_of(plan)
    assert warning.startswith("no neuron is on the GPU: --vram leaves ")
    assert "beside 777 B of buffers" in warning


def test_rows_that_ram_cannot_hold_stay_on_flash(build: Build, make_hardware: Callable[..., Hardware]) -> None:
    machine = make_hardware(hand_over=1e-6, overhead=(1e-7, 2e-7), flash=DRIVE)
    whole = build(0, hardware=machine)
    assert whole.total_bytes("flash") == 0
    needed = whole.total_bytes("ram")
    for missing in (1, GROUP, GROUP + 1, 12 * GROUP):
        plan = build(0, needed - missing, hardware=machine)
        rows = -(-missing // GROUP) * 64
        assert plan.total_bytes("flash") == rows * 192
        assert plan.total_bytes("ram") <= needed - missing
        assert plan.expected.flash_bytes > 0 and plan.expected.token_seconds > whole.expected.token_seconds
        (warning,) = warnings_of(plan)
        assert re.match(rf"{rows * 192} bytes of neurons .* stay on flash .* a larger --ram would help", warning)
    with pytest.raises(UserError, match=r"1 bytes \(1 B\) are missing; give more of either, a smaller --context$"):
        build(0, needed - 12 * GROUP - 1, hardware=machine)


def test_the_coldest_rows_are_left_on_flash(
    build: Build, make_hardware: Callable[..., Hardware], make_frequencies: Callable[..., Frequencies]
) -> None:
    machine = make_hardware(hand_over=1e-6, overhead=(1e-7, 2e-7), flash=DRIVE)
    needed = build(0, hardware=machine).total_bytes("ram")
    plan = build(0, needed - 5 * GROUP, hardware=machine)
    named = make_frequencies().named.reshape(3, 4, 64).sum(axis=2)
    on_flash = [sum(s.rows for s in layer.segments if s.on_flash) // 64 for layer in plan.layers]
    assert sum(on_flash) == 5
    coldest = np.sort(named.reshape(-1))[:5].sum()
    assert sum(named[i, 4 - n :].sum() for i, n in enumerate(on_flash)) == pytest.approx(coldest, rel=0.1)


@pytest.mark.parametrize("gpu", [1e9, 5e8])
@pytest.mark.parametrize("objective", ["latency", "impact"])
def test_a_gpu_that_is_no_faster_gets_no_neuron_and_the_report_says_so(
    build: Build, make_hardware: Callable[..., Hardware], gpu: float, objective: str
) -> None:
    # A hand-over costs more than two units at once would save.
    plan = build(ROOMY, hardware=make_hardware(gpu=gpu, overhead=(1e-4, 1e-4)), objective=objective)
    assert plan.bytes["gpu"]["neurons"] == 0
    assert warnings_of(plan) == (
        f"no neuron is on the GPU: its memory ({gpu / 1e9:g} GB/s) is not faster than the CPU's (1 GB/s)",
    )


def test_a_gpu_as_fast_as_the_cpu_halves_the_work_where_handing_over_is_cheap(
    build: Build, make_hardware: Callable[..., Hardware]
) -> None:
    machine = make_hardware(gpu=1e9, hand_over=0.0, overhead=(0.0, 0.0))
    plan, alone = build(ROOMY, hardware=machine), build(0, hardware=machine)
    assert plan.expected.ffn_seconds < 0.7 * alone.expected.ffn_seconds
    assert warnings_of(plan) == ()


def test_layers_too_small_to_repay_a_synchronisation_get_no_neuron(
    build: Build, make_hardware: Callable[..., Hardware]
) -> None:
    plan = build(ROOMY, hardware=make_hardware(sync=1.0), objective="impact")
    assert plan.bytes["gpu"]["neurons"] == 0
    assert "too few to repay a synchronisation" in warnings_of(plan)[0]


def test_every_layer_on_the_gpu_repays_its_synchronisation(
    build: Build, make_hardware: Callable[..., Hardware]
) -> None:
    hardware = make_hardware(sync=129 * (192 / 1e9 - 192 / 4e9))
    full = dense_bytes(build(ROOMY))
    for groups in range(13):
        plan = build(full + groups * GROUP, hardware=hardware, objective="impact")
        rows = [plan.gpu_rows(layer) for layer in range(3)]
        assert all(n == 0 or n >= 192 for n in rows)
        assert (sum(rows) > 0) == (groups >= 3)


@pytest.mark.parametrize("objective", ["latency", "impact"])
def test_a_layer_that_never_fired_is_placed_last(
    build: Build, make_frequencies: Callable[..., Frequencies], objective: str
) -> None:
    frequencies = make_frequencies()
    counts = {name: getattr(frequencies, name).copy() for name in ("active", "named", "union4", "union16")}
    for shares in counts.values():
        shares[1] = 0
    silent = replace(frequencies, **counts)
    full = dense_bytes(build(ROOMY))
    plan = build(full + 8 * GROUP, frequencies=silent, objective=objective)
    assert np.isfinite(plan.expected.token_seconds)
    assert plan.gpu_rows(0) > 0 < plan.gpu_rows(2)
    if objective == "impact":
        assert [plan.gpu_rows(layer) for layer in range(3)] == [256, 0, 256]


@pytest.mark.parametrize("mode", ["exact", "predicted", "dense"])
@pytest.mark.parametrize("objective", ["latency", "impact"])
def test_a_profile_of_nothing_but_zeros_is_placed(build: Build, mode: str, objective: str) -> None:
    nothing = np.zeros((3, 256))
    plan = build(
        60_000, frequencies=Frequencies(nothing, nothing, nothing, nothing, True), mode=mode, objective=objective
    )
    assert np.isfinite(plan.expected.token_seconds) and plan.solver and plan.solver.status == "optimal"
    assert plan.total_bytes("gpu") <= 60_000


def test_a_short_last_group_goes_whole(build: Build, make_sizes: Callable[..., ModelSizes]) -> None:
    random = np.random.default_rng(0)
    active = -np.sort(-random.random((2, 100)), axis=1)
    frequencies = Frequencies(active, active, active, active, True)
    for vram in range(38_000, 80_000, 3_000):
        plan = build(vram, sizes=make_sizes(2, 100), frequencies=frequencies)
        assert all(plan.gpu_rows(layer) in (0, 64, 100) for layer in range(2))
        assert plan.total_bytes("gpu") <= vram


def test_a_profile_of_another_shape_is_refused(build: Build, make_frequencies: Callable[..., Frequencies]) -> None:
    with pytest.raises(UserError, match="profile it anew"):
        build(ROOMY, frequencies=make_frequencies(2))


@pytest.mark.parametrize("name", ["vram", "ram", "context", "batch"])
@pytest.mark.parametrize("value", [-1, 0.5, float("nan"), True, "1GiB", MOST_BYTES + 1])
def test_absurd_budgets_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=r"plan: .* a whole number from"):
        Budgets(**{"vram": 1, "ram": None, "context": 1, "batch": 1, name: value})


def test_the_largest_budgets_there_are_change_nothing(build: Build) -> None:
    assert build(MOST_BYTES, MOST_BYTES).layers == build(ROOMY).layers
