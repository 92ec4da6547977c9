"""Figures of a machine: what is shipped is valid, what is damaged is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.hardware import NOMINAL_CONTEXT, Hardware, read_hardware, shipped_hardware, write_hardware
from profiler.speeds import Access, ComputeUnit, FlashSpeed, Reading, Speed

bandwidths = st.floats(1e6, 1e15)
delays = st.floats(0, 10)
sizes = st.integers(1, 1 << 60)
flops = st.none() | st.floats(1e6, 1e18)
speed = st.builds(Speed, bandwidths, bandwidths, flops, st.none() | bandwidths)
speeds = st.dictionaries(st.sampled_from(["f16", "q8_0", "q4_0"]), speed)
units = st.builds(
    ComputeUnit,
    bandwidths,
    delays,
    contention=st.floats(1, 2),
    flops=flops,
    memory=st.none() | sizes,
    speeds=speeds,
)
readings = st.builds(
    Reading,
    st.sampled_from(["gpu", "cpu"]),
    st.text(max_size=8),
    st.sampled_from(get_args(Access)),
    st.integers(0, 128),
    st.booleans(),
    bandwidths,
    st.floats(0, 1e6),
)
machines = st.builds(
    Hardware,
    st.text(min_size=1, max_size=50),
    st.text(),
    units,
    units,
    bandwidths,
    bandwidths,
    delays,
    delays,
    st.booleans(),
    st.lists(st.builds(FlashSpeed, sizes, sizes, bandwidths), max_size=4).map(tuple),
    st.lists(readings, max_size=4).map(tuple),
    st.none() | st.integers(0, 1 << 60),
)
STAND_IN = read_hardware("cpu-stand-in")


def damaged(path: Path, **changes: object) -> Path:
    body = json.loads((Path(path)).read_text())
    body.update(changes)
    path.write_text(json.dumps({k: v for k, v in body.items() if v != "absent"}))
    return path


def test_what_is_shipped_is_read_by_its_name() -> None:
    cards = {f"{card}-{case}" for card in ("rtx4060", "rtx4070", "rtx4090") for case in ("laptop", "desktop")}
    others = {"rtx2080ti-desktop", "powerinfer-pc-high", "powerinfer-pc-low", "m1-max", "cpu-only", "cpu-stand-in"}
    assert set(shipped_hardware()) >= cards | others
    for name in shipped_hardware():
        hardware = read_hardware(name)
        assert hardware.name == name
        assert not hardware.measured
        assert "not" in hardware.description and "measured" in hardware.description


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"cpu-stand-in, m1-max, .*, rtx4060-laptop"):
        read_hardware("rtx9999")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.json is missing"):
        read_hardware("nowhere.json")


@settings(deadline=None, max_examples=50)
@given(machines)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, hardware: Hardware) -> None:
    path = tmp_path_factory.mktemp("machine") / "mine.json"
    write_hardware(path, hardware)
    assert read_hardware(path) == hardware
    assert read_hardware(str(path)).digest == hardware.digest


def test_the_digest_is_of_the_figures_alone() -> None:
    assert replace(STAND_IN, name="other", description="").digest == STAND_IN.digest
    as_whole_numbers = replace(STAND_IN, link_bandwidth=int(STAND_IN.link_bandwidth))
    assert as_whole_numbers.digest == STAND_IN.digest
    assert replace(STAND_IN, sync=STAND_IN.sync * 2).digest != STAND_IN.digest
    assert replace(STAND_IN, gpu=STAND_IN.cpu, cpu=STAND_IN.gpu).digest != STAND_IN.digest


def test_a_gpu_slower_than_the_cpu_is_legal() -> None:
    assert replace(STAND_IN, gpu=ComputeUnit(1e9, 0), cpu=ComputeUnit(2e9, 0)).gpu.bandwidth == 1e9


@pytest.mark.parametrize(
    "changes",
    [
        {"sync": -1e-6},
        {"sync": float("nan")},
        {"hand_over": float("inf")},
        {"hand_over": "1e-5"},
        {"hand_over": True},
        {"link_bandwidth": 0},
        {"link_bandwidth": -1e9},
        {"link_bandwidth": 10**400},
        {"link_bandwidth": [1e9]},
        {"measured": 1},
        {"measured": "absent"},
        {"name": ""},
        {"name": 3},
        {"description": None},
        {"gpu": "absent"},
        {"gpu": None},
        {"gpu": [1e9, 0]},
        {"gpu": {"bandwidth": 1e9}},
        {"gpu": {"bandwidth": 5e-324, "overhead": 0}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "colour": 1}},
        {"cpu": {"bandwidth": 1e9, "overhead": -1}},
        {"turbo": True},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "contention": 0.5}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "flops": 0}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "memory": -1}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "speeds": {"f16": 1e9}}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "speeds": {"f16": {"dense": 1e9, "rows": 0}}}},
        {"gpu": {"bandwidth": 1e9, "overhead": 0, "speeds": ["f16"]}},
        {"flash": {"block": 4096}},
        {"flash": [{"block": 4096, "depth": 0, "bandwidth": 1e9}]},
        {"flash": [{"block": 4096}]},
        {"readings": [{"unit": "npu"}]},
        {"back_bandwidth": "absent"},
        {"context_bytes": -1},
        {"context_bytes": 1.5},
        {"context_bytes": True},
        {"kind": "plan"},
        {"format_version": 1},
        {"format_version": 4},
        {"format_version": "absent"},
    ],
)
def test_damaged_figures_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "mine.json"
    write_hardware(path, STAND_IN)
    with pytest.raises(UserError, match=r"mine\.json"):
        read_hardware(damaged(path, **changes))


def test_a_file_of_the_version_before_is_read_and_its_context_is_nominal() -> None:
    older = read_hardware(Path(__file__).parents[1] / "artifacts/versions/hardware_2.json")
    assert older.context_bytes is None
    assert older.context == NOMINAL_CONTEXT, "its GPU has memory of its own"
    assert older.gpu.speeds["f16"].rows == 4e11


def test_what_a_process_takes_of_a_gpu_is_measured_or_nominal_and_nothing_where_memory_only_stands_for_one() -> None:
    for name in shipped_hardware():
        machine = read_hardware(name)
        assert machine.context == (NOMINAL_CONTEXT if machine.gpu.memory else 0), name
    laptop = read_hardware("rtx4060-laptop")
    measured = replace(laptop, context_bytes=3 << 20)
    assert measured.context == 3 << 20
    assert replace(laptop, context_bytes=0).context == 0
    assert len({laptop.digest, measured.digest, replace(laptop, context_bytes=0).digest}) == 3


def test_no_torch_is_loaded() -> None:
    code = "import sys, profiler.hardware; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_together_units_are_done_when_each_is_slowed_while_both_work() -> None:
    gpu, cpu = ComputeUnit(1e9, 0, contention=1.5), ComputeUnit(1e9, 0, contention=1.2)
    machine = replace(STAND_IN, gpu=gpu, cpu=cpu)
    # The GPU needs 2 s at a rate of 1/1.5: 3 s. By then the CPU has done 3/1.2 = 2.5 of its 4 s; 1.5 s are left.
    assert machine.joined_seconds(2.0, 4.0) == pytest.approx(4.5)
    assert machine.joined_seconds(4.0, 1.0) == pytest.approx(1.2 + (4.0 - 1.2 / 1.5))
    assert machine.joined_seconds(2.0, 0.0) == 2.0
    assert machine.joined_seconds(0.0, 2.0) == 2.0


@given(st.floats(1, 2), st.floats(1, 2), st.floats(0, 10), st.floats(0, 10))
def test_the_end_of_both_units_is_what_a_simulation_sees(c_gpu: float, c_cpu: float, gpu: float, cpu: float) -> None:
    units = {"gpu": ComputeUnit(1e9, 0, contention=c_gpu), "cpu": ComputeUnit(1e9, 0, contention=c_cpu)}
    first = min(gpu * c_gpu, cpu * c_cpu)
    left = max(gpu - first / c_gpu, cpu - first / c_cpu)
    assert replace(STAND_IN, **units).joined_seconds(gpu, cpu) == pytest.approx(first + left, abs=1e-9)


def test_units_that_are_slower_together_than_in_turns_are_refused() -> None:
    with pytest.raises(UserError, match="together do less"):
        replace(STAND_IN, gpu=ComputeUnit(1e9, 0, contention=3), cpu=ComputeUnit(1e9, 0, contention=3))


def test_the_drive_is_as_fast_as_the_nearest_figures_that_are_no_better() -> None:
    flash = (FlashSpeed(4096, 1, 1e8), FlashSpeed(4096, 32, 1e9), FlashSpeed(65536, 32, 3e9))
    machine = replace(STAND_IN, flash=flash)
    assert machine.flash_bandwidth(4096, 32) == 1e9
    assert machine.flash_bandwidth(16384, 40) == pytest.approx(2e9)
    assert machine.flash_bandwidth(1 << 20, 32) == 3e9
    assert machine.flash_bandwidth(512, 8) == 1e8
    with pytest.raises(UserError, match="hybrid hardware"):
        STAND_IN.flash_bandwidth(4096, 1)


def test_a_format_without_a_speed_of_its_own_is_read_at_the_memorys() -> None:
    unit = ComputeUnit(2e9, 0, speeds={"q4_0": Speed(1e9, 5e8)})
    assert unit.speed("q4_0") == Speed(1e9, 5e8)
    assert unit.speed("f16") == Speed(2e9, 2e9)


def test_products_of_a_format_are_its_own_where_they_are_known() -> None:
    unit = ComputeUnit(2e9, 0, flops=1e12, speeds={"q4_0": Speed(1e9, 5e8, flops=3e12), "q8_0": Speed(1e9, 5e8)})
    assert [unit.products(name) for name in ("q4_0", "q8_0", "f16")] == [3e12, 1e12, 1e12]
    assert ComputeUnit(2e9, 0).products("f16") is None


def test_the_digest_counts_every_figure_of_a_format() -> None:
    known = {Speed(1e9, 5e8), Speed(1e9, 5e8, flops=1e12), Speed(1e9, 5e8, passed=7e8), Speed(1e9, 6e8)}
    units = [replace(STAND_IN.gpu, speeds={"f16": one}) for one in known]
    assert len({replace(STAND_IN, gpu=unit).digest for unit in units}) == 4
