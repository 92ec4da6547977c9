"""Which plan a model is opened with, on devices whose figures the test says: named, for a budget, or chosen."""

import json
import re
from dataclasses import replace

import pytest

from hybrid.runtime import this_machine
from hybrid.stages import plan_defaults
from hybrid.stages.automatic import Device, Use, automatic_plan, choose_plan, opened_fit, plan_within
from hybrid.stages.plan import PlanSettings
from hybrid.stages.plan import plan as write_plan
from hybrid.store.files import ModelFiles
from profiler.artifacts import UserError
from profiler.hardware import read_hardware, write_hardware

MIB = 1 << 20
USE = Use("predicted", 256, 1, "f16", "default", "default")
CONTEXT = {"context": 3 * MIB, "growth": MIB, "rounding": MIB}  # what being on the pretended GPU takes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No figures of this machine, and no GPU that planning could find."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_defaults, "free_vram", lambda: None)


@pytest.fixture
def files(demo_copy):
    """A profiled model without a plan by default."""
    found = ModelFiles.open_files(demo_copy)
    found.plan_path("default").unlink(missing_ok=True)
    return found


@pytest.fixture
def gpu(pretended_device):
    return lambda free, **figures: Device("cuda", pretended_device(free=free, **{**CONTEXT, **figures}))


@pytest.fixture
def measured(tmp_path):
    """Keep figures of a GPU as those measured here; their file."""
    stand_in = read_hardware("cpu-stand-in")
    gpu = replace(stand_in.gpu, memory=8 << 30)
    figures = replace(stand_in, gpu=gpu, name="here", measured=True, context_bytes=4 * MIB)
    path = this_machine.measured_path("cuda")
    path.parent.mkdir(parents=True)
    write_hardware(path, figures)
    return path


def make_default(files, vram, **settings):
    usual = {"vram": vram, "context": 256, "hardware": "cpu-stand-in"}
    return write_plan(files.path, PlanSettings(**{**usual, **settings})).plan


def test_a_named_plan_is_taken_as_it_is(files):
    made = make_default(files, 6 * MIB, name="mine")
    assert choose_plan(files, "mine", None) == made
    assert choose_plan(files, made, None) is made
    assert choose_plan(files, None, 5) is None
    with pytest.raises(UserError, match="no plan other"):
        choose_plan(files, "other", None)
    with pytest.raises(UserError, match="--plan, or --vram"):
        choose_plan(files, "mine", 6 * MIB)


def test_a_plan_for_a_budget_counts_what_being_on_the_device_takes(files, gpu):
    device = gpu(20 * MIB)
    plan = plan_within(files, USE, device, 12 * MIB)
    assert plan.bytes["gpu"]["context"] == 5 * MIB, "of a machine that was not measured, what is seen and what may come"
    assert sum(plan.gpu_rows(i) for i in range(len(plan.layers)))
    assert 11 * MIB < plan.total_bytes("gpu") <= 12 * MIB
    assert opened_fit(files, plan, USE, device).problem is None


def test_what_a_measured_machine_came_to_take_counts_if_it_is_more(files, gpu, measured):
    assert plan_within(files, USE, gpu(30 * MIB), 12 * MIB).bytes["gpu"]["context"] == 5 * MIB
    write_hardware(measured, replace(read_hardware(measured), context_bytes=6 * MIB))
    assert plan_within(files, USE, gpu(30 * MIB), 12 * MIB).bytes["gpu"]["context"] == 6 * MIB
    write_hardware(measured, replace(read_hardware(measured), context_bytes=None))  # by an older version
    assert plan_within(files, USE, gpu(30 * MIB), 12 * MIB).bytes["gpu"]["context"] == 5 * MIB


def test_more_than_is_free_is_refused_with_both_figures(files, gpu, pretended_device):
    with pytest.raises(UserError, match=r"--vram asks for 24\.0 MiB and 23\.0 MiB of GPU memory are free"):
        plan_within(files, USE, gpu(20 * MIB), 24 * MIB)
    stand_in = Device("cpu", pretended_device(free=5 * MIB))
    with pytest.raises(UserError, match=r"--vram asks for 6\.0 MiB and 5\.0 MiB of host memory are free"):
        plan_within(files, USE, stand_in, 6 * MIB)
    assert plan_within(files, USE, stand_in, 5 * MIB).bytes["gpu"]["context"] == 0


def test_without_a_default_plan_one_is_made_for_what_is_free(files, gpu):
    told = []
    plan = automatic_plan(files, USE, gpu(13 * MIB), told.append)
    assert plan.budgets.vram == 15 * MIB, "of 16 MiB with the context, a sixteenth is left to others"
    assert plan.total_bytes("gpu") <= 15 * MIB
    (line,) = told
    assert "no plan default; planned now for 15.0 MiB of the 16.0 MiB that are free" in line
    assert "hybrid plan" in line
    assert not files.has_plan("default"), "nothing is written"


def test_the_default_plan_is_used_where_it_fits(files, gpu, measured):
    made = make_default(files, 14 * MIB, hardware=str(measured))
    told = []
    assert made.bytes["gpu"]["context"] == 4 * MIB
    assert automatic_plan(files, USE, gpu(30 * MIB, context=2 * MIB), told.append) == made
    assert automatic_plan(files, replace(USE, mode="exact", context=100), gpu(30 * MIB, context=0), told.append) == made
    assert told == []


def planned_anew(files, use, device, said):
    """What is chosen in the place of the default plan, where a line that matches `said` tells of it."""
    told = []
    plan = automatic_plan(files, use, device, told.append)
    (line,) = told
    assert re.search(said, line), line
    assert "planned now for" in line and f"hybrid plan {files.path} --vram SIZE" in line
    assert opened_fit(files, plan, use, device).problem is None
    return plan


def test_a_default_plan_that_finds_less_free_is_planned_anew(files, gpu, measured):
    made = make_default(files, 14 * MIB, hardware=str(measured))
    device = gpu(8 * MIB, context=2 * MIB)
    # What the plan leaves of its budget unused depends on the machine's threads.
    said = r"and 10\.0 MiB are free, (3\.[5-9]|4\.0) MiB too little; planned now for 9\.4 MiB"
    plan = planned_anew(files, USE, device, said)
    assert 0 < plan.total_bytes("gpu") <= 10 * MIB * 15 // 16 < made.total_bytes("gpu")


def test_a_larger_context_than_planned_is_planned_anew_within_the_budget(files, gpu, measured):
    make_default(files, 14 * MIB, hardware=str(measured))
    device = gpu(60 * MIB, context=3 * MIB)
    plan = planned_anew(files, USE, device, "too little; planned now for 14.0 MiB")
    assert plan.bytes["gpu"]["context"] == 5 * MIB


def test_a_default_plan_for_less_than_is_asked_for_is_planned_anew(files, gpu, measured):
    make_default(files, 14 * MIB, hardware=str(measured))
    device = gpu(60 * MIB, context=2 * MIB)
    assert planned_anew(files, replace(USE, context=300), device, "room for 256 tokens").budgets.context == 300
    assert planned_anew(files, replace(USE, sequences=8), device, "its budget is 14.0 MiB").budgets.batch == 8
    planned_anew(files, replace(USE, kv_format="f32"), device, "its budget is 14.0 MiB")


def test_a_default_plan_of_another_machine_model_or_order_is_planned_anew(files, gpu, measured):
    make_default(files, 14 * MIB)
    device = gpu(60 * MIB, context=2 * MIB)
    planned_anew(files, USE, device, "made with the figures of cpu-stand-in, which are not this machine's")
    make_default(files, 14 * MIB, hardware=str(measured))
    path = files.plan_path("default")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "digests": {**whole["digests"], "row_order": "0" * 64}}))
    planned_anew(files, USE, device, "profiled anew since the plan was made")
    path.write_text("damaged")
    planned_anew(files, USE, device, "not valid JSON")


def test_a_machine_that_was_not_measured_uses_the_default_plan_whatever_its_figures(files, gpu):
    made = make_default(files, 24 * MIB)
    told = []
    plan = automatic_plan(files, USE, gpu(60 * MIB), told.append)
    assert (plan, told) == (made, []), "there is room for a context that nobody planned for"


def test_where_no_plan_can_be_made_the_cpu_computes_and_it_is_said(files, gpu):
    files.profile_path("default").unlink()
    told = []
    assert automatic_plan(files, replace(USE, mode="exact"), gpu(60 * MIB), told.append) is None
    (line,) = told
    assert "computed on the CPU alone" in line and "hybrid profile" in line
    with pytest.raises(UserError, match="hybrid profile"):
        plan_within(files, replace(USE, mode="exact"), gpu(60 * MIB), 20 * MIB)


def test_a_stand_in_needs_a_plan_that_says_how_much_it_takes(files, pretended_device):
    stand_in = Device("cpu", pretended_device(free=60 * MIB))
    with pytest.raises(UserError, match="no plan default; make one with: hybrid plan"):
        automatic_plan(files, USE, stand_in, print)
    made = make_default(files, 7 * MIB)
    told = []
    assert automatic_plan(files, USE, stand_in, told.append) == made
    assert told == []
    stand_in.memory.free_bytes = 6 * MIB
    plan = planned_anew(files, USE, stand_in, "the plan default takes 7.0 MiB of GPU memory and 6.0 MiB are free")
    assert 0 < plan.total_bytes("gpu") <= 6 * MIB
    files.plan_path("default").write_text("damaged")
    with pytest.raises(UserError, match="not valid JSON"):
        automatic_plan(files, USE, stand_in, print)
