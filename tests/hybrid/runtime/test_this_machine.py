"""What names this machine, and the file of its figures: without torch, the same today and tomorrow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.runtime import this_machine as this
from hybrid.runtime.memory import total_memory
from hybrid.runtime.processor import gpu_names, last_level_cache, processor_name
from hybrid.runtime.this_machine import MachineKey, machine_key, measured_path, this_machine
from profiler.artifacts import UserError
from profiler.hardware import read_hardware, write_hardware

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
KEY = MachineKey("Intel(R) Core(TM) i7-12700K", 8, ("NVIDIA GeForce RTX 2080 Ti",), 64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_key_can_be_read_and_never_changes() -> None:
    assert KEY.name == "intel-r-core-tm-i7-12700k-8-threads-nvidia-geforce-rtx-2080-ti-64-gib-" + KEY.name[-8:]
    assert KEY.name == MachineKey(*KEY.__dict__.values()).name
    others = [("i9", 8, KEY.gpus, 64), (KEY.processor, 4, KEY.gpus, 64), (KEY.processor, 8, (), 64)]
    others.append((KEY.processor, 8, KEY.gpus, 32))
    assert len({KEY.name, *(MachineKey(*other).name for other in others)}) == 5


def test_a_key_is_a_file_name_whatever_the_processor_is_called() -> None:
    name = MachineKey("../../etc/Ünï\0code " + "x" * 500, 1, ("a/b",), 1).name
    assert len(name) <= 90
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_key_of_this_machine_is_stable_and_needs_no_torch(cache) -> None:
    code = (
        "import sys; from hybrid.runtime.this_machine import *; print(this_machine('cpu'), measured_path('cpu'));"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    shown = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert [done.returncode for done in shown] == [0, 0], shown[0].stderr
    assert shown[0].stdout == shown[1].stdout == f"None {measured_path('cpu')}\n"
    assert measured_path(None) == cache / "hardware" / f"{machine_key().name}.json"


@on_linux
def test_a_machine_is_what_its_files_say(tmp_path) -> None:
    put(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nmodel name\t: A Processor\nmodel name\t: A Processor\n",
        **{"proc__driver__nvidia__gpus__0000:01:00.0__information": "Model: \t NVIDIA GeForce RTX 4060\nIRQ: 1\n"},
        **{"proc__driver__nvidia__gpus__0000:02:00.0__information": "Model: \t Another\n"},
    )
    assert processor_name(tmp_path) == "A Processor"
    assert gpu_names(tmp_path) == ("NVIDIA GeForce RTX 4060", "Another")
    assert gpu_names(tmp_path / "proc") == ()
    assert processor_name(tmp_path / "nowhere"), "a kind of processor at least"


@on_linux
def test_caches_that_cpus_share_count_once(tmp_path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for index, (level, kind, size, cpus) in enumerate(
            [("1", "Data", "48K", str(cpu)), ("3", "Unified", "32M", shared), ("4", "Instruction", "1G", shared)]
        ):
            folder = f"sys__devices__system__cpu__cpu{cpu}__cache__index{index}__"
            parts = {"level": level, "type": kind, "size": size, "shared_cpu_list": cpus}
            put(tmp_path, **{folder + name: text for name, text in parts.items()})
    assert last_level_cache(tmp_path, {0, 1, 2, 3}) == 64 << 20
    assert last_level_cache(tmp_path, {0, 1}) == 32 << 20
    assert last_level_cache(tmp_path, {9}) is None


@on_linux
def test_memory_is_at_most_what_a_control_group_grants(tmp_path) -> None:
    put(
        tmp_path,
        proc__self__cgroup="0::/mine\n",
        proc__self__mountinfo="1 2 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    )
    limit = tmp_path / "sys/fs/cgroup/mine/memory.max"
    limit.parent.mkdir(parents=True)
    limit.write_text("1000000\n")
    assert total_memory(tmp_path) == 1_000_000
    limit.write_text("max\n")
    assert total_memory(tmp_path) > 1 << 27


def test_figures_are_found_by_the_device_that_they_were_measured_with(cache) -> None:
    (cache / "hardware").mkdir(parents=True)
    assert this_machine() is None
    machine = read_hardware("cpu-stand-in")
    write_hardware(measured_path("cpu"), machine)
    assert this_machine("cpu") == machine
    assert this_machine() is None and this_machine("cuda") is None, "a stand-in is no GPU"
    assert this_machine("cpu", threads=this.usable_cores() + 1) is None
    write_hardware(measured_path(None), machine)
    assert this_machine() == machine
    other = read_hardware("rtx4060-laptop")
    write_hardware(measured_path("cuda"), other)
    assert this_machine() == this_machine("cuda") == other


@pytest.mark.parametrize("damage", ["{", "[]", '{"kind": "hardware", "format_version": 1}', "{}"])
def test_a_damaged_file_names_what_measures_anew(cache, damage) -> None:
    path = measured_path("cpu")
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    with pytest.raises(UserError, match="measure this machine anew with: hybrid hardware --second-device cpu"):
        this_machine("cpu")


def test_a_figure_out_of_range_names_what_measures_anew(cache) -> None:
    path = measured_path(None)
    path.parent.mkdir(parents=True)
    write_hardware(path, read_hardware("cpu-stand-in"))
    body = json.loads(path.read_text())
    body["gpu"]["bandwidth"] = 0
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"bandwidth.*anew with: hybrid hardware$"):
        this_machine()
