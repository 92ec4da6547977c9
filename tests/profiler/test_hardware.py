"""Figures of a machine: what is shipped is valid, what is damaged is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.artifacts import UserError
from profiler.hardware import ComputeUnit, Hardware, read_hardware, shipped_hardware, write_hardware

bandwidths = st.floats(1e6, 1e15)
delays = st.floats(0, 10)
units = st.builds(ComputeUnit, bandwidths, delays)
machines = st.builds(
    Hardware, st.text(min_size=1, max_size=50), st.text(), units, units, bandwidths, delays, delays, st.booleans()
)
STAND_IN = read_hardware("cpu-stand-in")


def damaged(path: Path, **changes: object) -> Path:
    body = json.loads((Path(path)).read_text())
    body.update(changes)
    path.write_text(json.dumps({k: v for k, v in body.items() if v != "absent"}))
    return path


def test_what_is_shipped_is_read_by_its_name() -> None:
    assert set(shipped_hardware()) >= {"cpu-stand-in", "rtx4060-laptop"}
    for name in shipped_hardware():
        hardware = read_hardware(name)
        assert hardware.name == name
        assert not hardware.measured
        assert "not" in hardware.description and "measured" in hardware.description


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"cpu-stand-in, rtx4060-laptop"):
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
        {"kind": "plan"},
        {"format_version": 2},
        {"format_version": "absent"},
    ],
)
def test_damaged_figures_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "mine.json"
    write_hardware(path, STAND_IN)
    with pytest.raises(UserError, match=r"mine\.json"):
        read_hardware(damaged(path, **changes))


def test_no_torch_is_loaded() -> None:
    code = "import sys, profiler.hardware; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
