"""What `hybrid doctor` finds: of this machine as it is, and of machines and installations that the test breaks."""

import json
import os
import stat
import sys

import psutil
import pytest
import torch

from hybrid.ops import cpu
from hybrid.runtime import this_machine
from hybrid.runtime.nvidia_driver import Gpu, NvidiaDriver
from hybrid.stages import doctor_installation, doctor_machine
from hybrid.stages.doctor import examine, looks
from hybrid.stages.doctor_installation import extension, hardware_figures, packages, required, solvers, the_name
from hybrid.stages.doctor_machine import Finding, drive, gpu, memory, threads
from profiler.artifacts import UserError
from profiler.hardware import read_hardware, write_hardware

GIB = 1 << 30


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYBRID_ISA", raising=False)
    return tmp_path / "cache"


def by_name(report):
    return {check["name"]: check for check in report["checks"]}


def test_a_working_installation_has_nothing_broken(hybrid, cache):
    code, out, err = hybrid("doctor", "--json", "--no-drive")
    report = json.loads(out)
    assert (code, err, report["schema"], report["broken"]) == (0, "", "hybrid.doctor/1", False)
    checks = by_name(report)
    assert cpu.isa() in checks["extension"]["found"]
    assert torch.__version__ in checks["packages"]["found"]
    assert "CBC" in checks["solvers"]["found"] and checks["solvers"]["status"] == "ok"
    assert str(cache) in checks["cache"]["found"]
    assert checks["figures"]["change"] == "hybrid hardware"
    code, out, _ = hybrid("doctor", "--no-drive")
    assert code == 0
    assert all(name in out for name in checks) and "-> hybrid hardware" in out
    assert out.rstrip().endswith(f"of {len(checks)}")


def test_what_is_broken_is_told_and_ends_in_1(hybrid, cache):
    cache.touch()
    code, out, _ = hybrid("doctor", "--no-drive", "--json")
    report = json.loads(out)
    assert code == 1 and report["broken"]
    assert by_name(report)["cache"]["status"] == "broken"
    assert "HYBRID_CACHE" in by_name(report)["cache"]["change"]


def test_a_part_that_fails_in_any_way_is_broken_and_the_others_are_looked_at():
    def crash():
        raise RuntimeError("boom")

    def refuse():
        raise UserError("mend it with: that")

    told = []
    parts = {"a": crash, "b": refuse, "c": lambda: Finding("fine", advice="more")}
    report = examine(parts, lambda done, total: told.append((done, total)))
    assert [check.status for check in report.checks] == ["broken", "broken", "ok"]
    assert [check.found for check in report.checks] == ["RuntimeError: boom", "mend it with: that", "fine"]
    assert report.checks[2].change == "more" and report.broken
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not examine({"a": lambda: Finding("slow", better="buy")}).broken
    assert "drive" in looks(None, True) and "drive" not in looks(None, False)


def test_missing_packages_are_named(monkeypatch):
    assert required(["torch<2.14,>=2.6", 'x-y; extra == "gpu"', "jinja2>=3.1.6"]) == ["torch", "jinja2"]
    monkeypatch.setattr(doctor_installation.importlib.metadata, "requires", lambda name: ["numpy", "no-such-thing>1"])
    assert packages().broken == "pip install no-such-thing"


def test_another_package_of_the_same_name(monkeypatch):
    assert the_name({"hybrid": ["hybrid-inference"]}).better is None
    assert the_name({}).better is None
    both = {"hybrid": ["hybrid-inference", "dwave-hybrid"]}
    assert "pip uninstall dwave-hybrid" in the_name(both).better
    monkeypatch.setattr(sys.modules["hybrid"], "__version__", "0.6.14")
    assert "has replaced it" in the_name(both).found and "pip uninstall" in the_name(both).broken


def test_instructions_that_are_forced(monkeypatch):
    before = cpu.isa()
    assert "the best that this CPU can do" in extension().found
    monkeypatch.setenv("HYBRID_ISA", "portable")
    cpu._native.set_isa("portable")
    try:
        finding = extension()
    finally:
        cpu._native.set_isa(before)
    if before != "portable":
        assert finding.better == "unset HYBRID_ISA" and f"can do {before}" in finding.found


def test_threads_within_a_quota(monkeypatch):
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda root: None)
    monkeypatch.setattr(doctor_machine.os, "cpu_count", lambda: len(os.sched_getaffinity(0)))
    assert threads() == Finding(threads().found)
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda root: 0.5)
    assert "docker run --cpus" in threads().better and "the time of 0.5" in threads().found
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda root: None)
    monkeypatch.setattr(doctor_machine.os, "cpu_count", lambda: 10_000)
    assert "taskset" in threads().better


def test_little_memory(monkeypatch):
    monkeypatch.setattr(doctor_machine, "available_memory", lambda: 20 * GIB)
    assert memory().better is None
    monkeypatch.setattr(doctor_machine, "available_memory", lambda: GIB)
    assert "--ram" in memory().better


def test_a_gpu_that_torch_does_not_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor_machine, "find_driver", lambda: None)
    assert gpu().better is None and gpu().found.startswith("no NVIDIA GPU")
    card = Gpu("NVIDIA GeForce RTX 3070", "8.6", 8 * GIB)
    driver = NvidiaDriver((card,), "570.1", (12, 8), usable=True, hidden=False)
    monkeypatch.setattr(doctor_machine, "find_driver", lambda: driver)
    finding = gpu()
    assert finding.found == (
        "NVIDIA GeForce RTX 3070 (compute capability 8.6) with 8.0 GiB; driver 570.1, up to CUDA 12.8"
    )
    assert "whl/cu128" in finding.better and finding.broken is None


def test_solvers_that_do_not_answer(monkeypatch, tmp_path):
    import pulp

    import placement.solvers

    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    assert solvers().found == "CBC answered" and "highspy" in solvers().advice
    crashing = tmp_path / "cbc"
    crashing.write_text("#!/bin/sh\nexit 139\n")
    crashing.chmod(crashing.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(placement.solvers, "CBC", crashing)
    assert solvers().found.startswith("none answered") and solvers().better == "pip install highspy"


def test_figures_of_this_machine(cache):
    assert "not measured" in hardware_figures().found and hardware_figures().better == "hybrid hardware"
    path = this_machine.measured_path(None)
    path.parent.mkdir(parents=True)
    write_hardware(path, read_hardware("cpu-stand-in"))
    assert hardware_figures() == Finding(read_hardware("cpu-stand-in").description)
    path.write_text("damaged")
    assert hardware_figures().broken == "hybrid hardware"


def test_the_drive_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "DRIVE_SECONDS", 0.02)
    finding = drive(tmp_path)
    in_memory = any(p.mountpoint == "/" and p.fstype == "tmpfs" for p in psutil.disk_partitions(all=True))
    if not in_memory and "not measured" not in finding.found:
        assert str(tmp_path) in finding.found and "GB/s in blocks of 1.0 MiB, 32 at once" in finding.found
    missing = drive(tmp_path / "missing")
    assert "is not a folder" in missing.found and "--directory" in missing.better
