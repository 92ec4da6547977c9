"""Where a plan's figures and budgets come from when the user does not say."""

from dataclasses import replace

import pytest

from hybrid.runtime import this_machine
from hybrid.stages import plan_defaults
from hybrid.stages.plan_defaults import Free, context_note, ram_note, resolve
from profiler.artifacts import UserError
from profiler.hardware import NOMINAL_CONTEXT, read_hardware, write_hardware

GIB = 1 << 30


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, in which no figures are."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path))
    monkeypatch.setattr(plan_defaults, "free_vram", lambda: None)
    return tmp_path


@pytest.fixture
def measured(cache):
    """Keep figures as those measured here, with a second device or none."""

    def keep(device):
        path = this_machine.measured_path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hardware(path, replace(read_hardware("cpu-stand-in"), name=f"measured {device}", measured=True))

    return keep


def test_a_machine_that_was_not_measured_has_nominal_figures_and_says_so(cache):
    given = resolve(None, None, 1 << 20, None)
    assert given.hardware.name == "cpu-stand-in"
    assert given.vram == 1 << 20 and given.ram is None
    assert any("not measured" in note and "hybrid hardware" in note for note in given.notes)
    asked = resolve(None, "cpu", 1 << 20, None)
    assert any("hybrid hardware --second-device cpu" in note for note in asked.notes)


def test_measured_figures_are_taken_for_the_device_that_is_meant(measured):
    measured(None)
    assert resolve(None, None, None, None).hardware.name == "measured None"
    assert resolve(None, None, 1 << 20, None).hardware.name == "cpu-stand-in"  # a CPU's say nothing of a second device
    measured("cpu")
    assert resolve(None, None, 1 << 20, None).hardware.name == "measured cpu"
    measured("cuda")
    assert resolve(None, None, 1 << 20, None).hardware.name == "measured cuda"
    assert resolve(None, "cpu", 1 << 20, None).hardware.name == "measured cpu"


def test_without_a_budget_the_gpus_free_memory_less_a_margin_is_planned(cache, monkeypatch):
    assert resolve(None, None, None, None).vram == 0
    monkeypatch.setattr(plan_defaults, "free_vram", lambda: 8 * GIB)
    given = resolve(None, None, None, None)
    assert given.vram == 8 * GIB - GIB // 2
    assert any("margin of 512.0 MiB" in note for note in given.notes)
    monkeypatch.setattr(plan_defaults, "free_vram", lambda: 64 * GIB)
    assert resolve(None, None, None, None).vram == 60 * GIB


def test_a_machine_that_is_not_here_is_planned_for_with_its_own_memory(cache):
    machine = read_hardware("rtx4060-laptop")
    given = resolve("rtx4060-laptop", None, None, None)
    assert given.vram == machine.gpu.memory - GIB // 2
    assert given.ram == machine.cpu.memory * 3 // 4
    assert resolve("rtx4060-laptop", None, 5, 6).vram == 5
    assert resolve("rtx4060-laptop", None, 5, 6).ram == 6
    with pytest.raises(UserError, match=r"does not say how much memory its GPU has.*--vram"):
        resolve("cpu-stand-in", None, None, None)


@pytest.mark.parametrize(
    ("device", "free", "said"),
    [
        (None, Free(5 * GIB, GIB), r"--vram asks for 6\.0 GiB and 5\.0 GiB of GPU memory are free; .*--vram 5120MiB"),
        ("cuda", Free(5 * GIB, GIB), r"and 5\.0 GiB of GPU memory are free"),
        ("cpu", Free(9 * GIB, GIB), r"and 1\.0 GiB of host memory are free"),
    ],
)
def test_more_than_is_free_here_is_refused_with_both_figures(cache, device, free, said):
    with pytest.raises(UserError, match=said):
        resolve(None, device, 6 * GIB, None, free)
    assert resolve("rtx4060-laptop", None, 6 * GIB, None, free).vram == 6 * GIB, "of a machine that is not here"


def test_without_a_gpu_a_plan_for_one_may_be_as_large_as_it_likes(cache):
    assert resolve(None, None, 99 * GIB, None, Free(None, GIB)).vram == 99 * GIB
    assert resolve(None, "cuda", 99 * GIB, None, Free(None, GIB)).vram == 99 * GIB


def test_a_gpu_that_was_not_measured_has_a_nominal_context(measured):
    here = Free(8 * GIB, GIB)
    assert resolve(None, None, GIB, None, here).hardware.context == NOMINAL_CONTEXT
    assert resolve(None, None, None, None, here).hardware.context == NOMINAL_CONTEXT
    assert resolve(None, "cpu", GIB, None, here).hardware.context == 0, "the stand-in is none"
    assert resolve(None, None, GIB, None, Free(None, GIB)).hardware.context == 0
    measured("cpu")
    assert resolve(None, None, GIB, None, here).hardware.context == NOMINAL_CONTEXT
    measured("cuda")
    assert resolve(None, None, GIB, None, here).hardware.context_bytes is None, "its own file says"


def test_a_context_that_was_not_measured_is_told():
    laptop = read_hardware("rtx4060-laptop")
    assert "768.0 MiB of GPU memory, which is nominal" in context_note(laptop, laptop.context)
    assert context_note(laptop, 0) is None, "nothing is on the GPU"
    assert context_note(replace(laptop, measured=True, context_bytes=5), 5) is None
    assert "hybrid hardware" in context_note(replace(laptop, measured=True), laptop.context)


def test_more_in_ram_than_is_free_is_said(monkeypatch):
    monkeypatch.setattr(plan_defaults, "available_memory", lambda: GIB)
    assert ram_note(GIB) is None
    assert "--ram SIZE" in ram_note(GIB + 1)
