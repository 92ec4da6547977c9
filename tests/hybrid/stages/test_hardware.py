"""The stage that measures a machine, on tiny shapes: all is there, legal, and found again. Nothing asserts a time."""

import os
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cli_hardware import hardware_lines
from hybrid.ops import cpu, cuda
from hybrid.runtime.cores import shared_cores, usable_cores
from hybrid.runtime.this_machine import measured_path, this_machine
from hybrid.runtime.unit import Unit, host_unit, stand_in_unit
from hybrid.stages import hardware, hardware_device, hardware_machine, hardware_weights
from hybrid.stages.hardware import HardwareSettings, measure
from hybrid.stages.hardware_delays import LONG, SHORT, measure_hand_over, measure_overhead
from hybrid.stages.hardware_device import DeviceOperators, operators_over
from hybrid.stages.hardware_machine import prepare
from hybrid.stages.hardware_units import UnitFigures
from hybrid.stages.hardware_weights import Operators, Shape, disjoint_masks, random_rows
from profiler.artifacts import UserError
from profiler.formats import WEIGHT_FORMATS, vector_bytes
from profiler.hardware import read_hardware
from profiler.speeds import Access, Speed

TINY = Shape(least=1 << 16, hidden=64, outputs=64, neurons=96)
FAST = HardwareSettings(flash=False, scale=0.0, shape=TINY)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def poolless():
    """A unit that computes as a GPU does, by torch's operators and not from recorded programs."""
    unit = Unit("gpu", torch.device("cpu"), None, in_place=False, budget=1 << 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for one another here
    yield unit
    torch.set_num_threads(threads)


def everything(machine, formats, devices, threads) -> None:
    """Every reading that is due, once, and a speed of every unit for every format."""
    found = [(r.unit, r.weight_format, r.access, r.threads, r.beside) for r in machine.readings]
    assert len(set(found)) == len(found)
    own = {(unit, f, access, threads[unit], False) for unit in devices for f in formats for access in get_args(Access)}
    beside = {(*where[:4], True) for where in own} if len(devices) > 1 else set()
    assert own | beside <= set(found)
    assert {where[3] for where in found if where[0] == "cpu"} >= {1, usable_cores(), threads["cpu"]}
    for unit in (machine.gpu, machine.cpu):
        assert set(unit.speeds) == set(formats)
        assert all(speed.flops for speed in unit.speeds.values())
    assert machine.measured and "Measured on" in machine.description


def test_a_stand_in_is_measured_as_the_gpu_and_found_again(cache) -> None:
    heard = []
    report = measure(replace(FAST, second_device="cpu"), lambda *at: heard.append(at))
    machine = report.hardware
    host, stand_in = shared_cores(usable_cores())
    assert report.threads == {"cpu": host, "gpu": stand_in}
    everything(machine, WEIGHT_FORMATS, ("cpu", "gpu"), report.threads)
    assert machine.hand_over == machine.sync
    assert machine.cpu.memory and machine.gpu.memory is None, "a stand-in has no memory of its own"
    assert machine.context_bytes == 0
    assert report.path == measured_path("cpu") and report.path.is_relative_to(cache)
    assert this_machine("cpu") == machine == read_hardware(report.path)
    assert {stage for stage, _, _ in heard} == {*WEIGHT_FORMATS, "delays"}
    assert machine.flash == () and any("drive" in note for note in report.notes)


def test_units_may_be_slowed_and_have_cores_for_figures_of_such_an_engine(cache, tmp_path) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pinned = {"gpu": (cores[0],), "cpu": (cores[1],)} if len(cores) > 1 else {}
    settings = replace(FAST, second_device="cpu", slowdown={"cpu": 8.0}, cores=pinned, output=tmp_path / "slow.json")
    machine = measure(replace(settings, formats=("f16",))).hardware
    assert "the cpu 8 times" in machine.description
    assert {r.threads for r in machine.readings if r.unit == "cpu"} == {
        1 if pinned else shared_cores(usable_cores())[0]
    }
    assert read_hardware(tmp_path / "slow.json") == machine
    assert this_machine("cpu") is None


def test_the_cpu_alone_gains_nothing_from_two_units(cache, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = measure(replace(FAST, formats=("q8_0",), threads=usable_cores()))
    machine = report.hardware
    everything(machine, ("q8_0",), ("cpu",), report.threads)
    assert replace(machine.gpu, memory=machine.cpu.memory) == machine.cpu
    assert machine.gpu.memory is None
    assert machine.joined_seconds(1.0, 2.0) == pytest.approx(3.0)
    assert this_machine(threads=usable_cores()) == machine


def test_a_cuda_device_is_measured_like_any_unit(cache, monkeypatch, poolless, pretended_device) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Pretended GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(L2_cache_size=1 << 20))
    monkeypatch.setattr(hardware_machine, "cuda_unit", lambda budget, memory: poolless)
    monkeypatch.setattr(hardware_device.cuda, "available", lambda device: False)  # the interpreter takes minutes
    device = pretended_device(total=8 << 30, free=1 << 30, context=300 << 20, growth=20 << 20, rounding=1 << 20)
    report = measure(replace(FAST, formats=("f16", "q4_0")), memory=device)
    assert report.second_device == "cuda" and report.threads == {"cpu": usable_cores(), "gpu": 0}
    everything(report.hardware, ("f16", "q4_0"), ("cpu", "gpu"), report.threads)
    assert report.hardware.gpu.memory == 8 << 30 and report.free["gpu"] == 1 << 30
    assert report.hardware.context_bytes == report.hardware.context == 321 << 20
    assert any("321.0 MiB of GPU memory go to the CUDA context" in line for line in hardware_lines(report))
    assert "Pretended GPU" in report.hardware.description
    assert this_machine() == report.hardware


@pytest.mark.skipif(not cuda.available(torch.device("cpu")), reason="Triton's interpreter is not there")
def test_device_operators_go_over_all_weights_at_once(poolless) -> None:
    rows = random_rows("f16", TINY)
    operators = operators_over(poolless, rows, "f16", TINY)
    assert isinstance(operators, DeviceOperators)
    assert operators.moved["dense"] == operators.moved["passed"] == rows.nbytes, "each weight once"
    assert operators.moved["rows"] == len(rows) // TINY.neurons * (TINY.neurons // 10) * rows[0].nbytes
    for access, finished in (("rows", len(rows) // TINY.neurons * (TINY.neurons // 10)), ("passed", len(rows))):
        before = operators.calls.counts.clone()
        operators.call(access)()
        assert (operators.calls.counts - before).tolist() == [finished] * 2
    operators.call("dense")()
    operators.call(None)()


def test_operators_of_units_with_threads_are_their_own() -> None:
    unit = host_unit(1)
    assert type(operators_over(unit, random_rows("f16", TINY), "f16", TINY)) is Operators


def test_the_drive_is_part_of_it(cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "LEAST_SCRATCH", 1 << 20)
    report = measure(replace(FAST, flash=True, directory=tmp_path, formats=("f16",), second_device="cpu"))
    assert report.hardware.flash == report.drive.speeds
    assert report.hardware.flash_bandwidth(4096, 32) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


class Watched(Unit):
    """A stand-in that notes what its operators are given: addresses of weights, bytes read, tokens."""

    def __init__(self, pool: cpu.Pool | None = None) -> None:
        super().__init__("gpu", torch.device("cpu"), pool, in_place=False, budget=1 << 40)
        self.seen = []

    def linear(self, x, weight, bias):
        self.seen.append((weight.data.data_ptr(), weight.nbytes, len(x)))
        return super().linear(x, weight, bias)

    def sparse_ffn(self, bank, x, named, skip_inactive, *rest):
        y, counts = super().sparse_ffn(bank, x, named, skip_inactive, *rest)
        self.seen.append((bank.addresses[0], counts.finished * 3 * vector_bytes(bank.weight_format, 64), len(x)))
        return y, counts


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_calls_take_turns_on_all_weights_and_say_what_they_read(weight_format) -> None:
    rows, unit = random_rows(weight_format, TINY), Watched(cpu.Pool(1))
    row_bytes = 3 * vector_bytes(weight_format, 64)
    layers = len(rows) // TINY.neurons
    assert rows.numel() * rows.element_size() == layers * TINY.neurons * row_bytes >= TINY.least
    operators = Operators(unit, rows, weight_format, TINY)
    for access, turns in (("dense", len(rows) * 3 // 64), ("rows", 10 * layers), ("passed", len(rows) // 9)):
        unit.seen.clear()
        for _ in range(turns):
            operators.call(access)()
        assert {(read, tokens) for _, read, tokens in unit.seen} == {(operators.moved[access], 1)}
        places = [place for place, _, _ in unit.seen]
        assert len(set(places)) == (layers if access == "rows" else turns)
        assert all(one != other for one, other in pairwise(places))


@pytest.mark.parametrize(("pool", "tokens"), [(cpu.Pool(1), 16), (None, 256)])
def test_many_tokens_are_as_many_as_a_unit_takes_of_a_prompt(pool, tokens) -> None:
    unit = Watched(pool)
    operators = Operators(unit, random_rows("bf16", TINY), "bf16", TINY)
    operators.call(None)()
    assert unit.seen[-1][2] == tokens
    assert operators.moved[None] == 2 * tokens * unit.seen[-1][1] // 2


def test_rows_are_named_here_and_there_and_in_one_mask_each() -> None:
    masks = disjoint_masks(96, 9)
    assert masks.shape == (10, 1, 96) and (masks.sum(-1) == 9).all()
    assert masks.int().sum(0).max() == 1


def test_the_host_uses_weights_in_place_and_others_copy_them(monkeypatch) -> None:
    rows, seen = random_rows("f16", TINY), []
    monkeypatch.setattr(hardware_weights, "RowBank", lambda data, *rest: seen.append(data.data_ptr()))
    for unit in (host_unit(1), stand_in_unit(1, 1 << 40)):
        Operators(unit, rows, "f16", TINY)
    assert seen[0] == rows.data_ptr() and seen[len(seen) // 2] != rows.data_ptr()


def test_delays_are_timed_on_units_with_and_without_recorded_programs(poolless) -> None:
    host = host_unit(1)
    for near in (stand_in_unit(1, 1 << 40), poolless):
        assert measure_overhead(near, 1, 0.0) >= 0
        for between in (LONG, SHORT):
            assert measure_hand_over(near, host, 64, 96, 1e9, between, 0.0).seconds >= 0


@given(*[st.lists(st.floats(0.01, 1e4), min_size=1, max_size=5)] * 2)
def test_contentions_are_such_as_a_machine_can_have(gpu: list[float], cpu: list[float]) -> None:
    speeds = {"gpu": {"f16": Speed(1e9, 1e9)}, "cpu": {"f16": Speed(1e9, 1e9)}}
    found = UnitFigures(speeds, {"gpu": gpu, "cpu": cpu}).contention()
    machine = read_hardware("cpu-stand-in")
    units = {name: replace(machine.gpu, contention=contention) for name, contention in found.items()}
    assert replace(machine, **units).joined_seconds(1.0, 1.0) <= 2.0 + 1e-9


def test_one_core_is_shared_by_both_units() -> None:
    assert [measured.threads for measured in prepare("cpu", 1, TINY).units] == [1, 1]
    assert [(m.unit.name, m.threads, m.used) for m in prepare("cpu", 6, TINY).units] == [
        ("cpu", 3, True), ("gpu", 3, True), ("cpu", 1, False), ("cpu", 2, False), ("cpu", 4, False), ("cpu", 6, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ("f16", "q5_k")}, "'q5_k' is not a format of weights; formats are bf16"),
        ({"formats": ()}, "each once"),
        ({"formats": ("f16", "f16")}, "each once"),
        ({"slowdown": {"cpu": 4.0}, "second_device": "cpu"}, "name a file for them with --output"),
        ({"cores": {"cpu": (0,), "gpu": (1,)}, "second_device": "cpu"}, "name a file for them with --output"),
        ({"slowdown": {"cpu": 4.0}}, "use a plan with --second-device cpu"),
        ({"threads": 0}, "0 threads make no sense"),
        ({"threads": 5000}, "5000 threads make no sense"),
    ],
)
def test_settings_that_make_no_sense(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        HardwareSettings(**settings)


def test_what_cannot_be_written_is_told_before_anything_is_measured(tmp_path) -> None:
    def never(*at: object) -> None:
        raise AssertionError("measured")

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        measure(replace(FAST, output=tmp_path / "file" / "machine.json"), never)
    with pytest.raises(UserError, match="it is a folder; name a file"):
        measure(replace(FAST, output=tmp_path), never)


def test_a_cuda_device_that_is_not_there(cache, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        measure(replace(FAST, second_device="cuda"))
