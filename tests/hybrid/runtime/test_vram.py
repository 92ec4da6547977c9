"""Budgets of a device held against figures that a test chooses: what counts, what fits, what an allocator holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.runtime.vram import Allowances, DeviceUse, HostMemory, allowance, context_cost, fit
from profiler.artifacts import UserError

MIB = 1 << 20
sizes = st.integers(0, 1 << 40)


def taken(placed, context):
    return {"neurons": placed, "buffers": 0, "context": context}


def test_the_context_counts_with_what_was_planned_or_with_what_it_really_takes_if_that_is_more(pretended_device):
    device = pretended_device(context=300 * MIB, growth=20 * MIB, rounding=30 * MIB)
    assert context_cost(400 * MIB, device) == 400 * MIB
    assert context_cost(100 * MIB, device) == 350 * MIB
    assert context_cost(0, device) == 350 * MIB, "a plan of the version before has no line for it"


def test_where_being_there_is_free_a_plan_for_a_gpu_needs_no_room_for_a_context(pretended_device):
    assert context_cost(400 * MIB, pretended_device(context=0)) == 0
    host = HostMemory()
    assert (host.context(), host.process(), host.growth, host.rounding) == (0, None, 0, 0)
    assert 0 < host.free() <= host.total()


def test_a_plan_that_fits(pretended_device):
    device = pretended_device(free=700 * MIB, context=300 * MIB)
    found = fit(taken(500 * MIB, 400 * MIB), 900 * MIB, device)
    assert (found.taken, found.context, found.available) == (900 * MIB, 400 * MIB, 1000 * MIB)
    assert found.problem is None
    found.require("dir")


def test_too_little_that_is_free_is_told_with_both_figures_and_the_command(pretended_device):
    device = pretended_device(free=500 * MIB, context=300 * MIB)
    message = (
        r"takes 900\.0 MiB of GPU memory, 400\.0 MiB of it the CUDA context and kernels, and 800\.0 MiB are free, "
        r"100\.0 MiB too little; .*hybrid plan dir --vram 800MiB"
    )
    with pytest.raises(UserError, match=message):
        fit(taken(500 * MIB, 400 * MIB), 900 * MIB, device).require("dir")


def test_a_context_that_is_larger_than_planned_breaks_the_budget(pretended_device):
    device = pretended_device(free=1 << 40, context=300 * MIB, growth=MIB)
    message = r"takes 801\.0 MiB .*and its budget is 600\.0 MiB.*hybrid hardware.*hybrid plan dir --vram SIZE"
    with pytest.raises(UserError, match=message):
        fit(taken(500 * MIB, 100 * MIB), 600 * MIB, device).require("dir")


@given(placed=sizes, line=sizes, budget=sizes, free=sizes, context=sizes, growth=sizes, rounding=sizes)
def test_what_fits_keeps_the_budget_and_the_device(placed, line, budget, free, context, growth, rounding) -> None:
    device = HostMemory()
    device.free, device.context = (lambda: free), (lambda: context)
    device.growth, device.rounding = growth, rounding
    found = fit(taken(placed, line), budget, device)
    cost = max(line, context + growth + rounding) if context else 0
    assert (found.problem is None) == (placed + cost <= budget and placed + cost <= free + context)
    if found.problem is None:
        held = allowance(budget, found.context, device)
        assert held >= placed, "all that was planned may be placed"
        if context:
            assert held >= placed + rounding, "and what the allocator rounds up beside it"
            assert context + growth + held <= budget, "the driver's part and the allocator's are the process's"
        else:
            assert held <= budget + rounding


def test_an_allocator_is_allowed_what_engines_may_take_together_beside_what_others_hold():
    allowed = Allowances()
    assert allowed.add(100, held=7) == 107
    assert allowed.add(50, held=90) == 157, "what the first engine holds is its own"
    assert allowed.add(-100, held=120) == 57
    assert allowed.add(-50, held=20) is None
    assert allowed.add(10, held=0) == 10, "what others hold is looked at anew"
    with pytest.raises(AssertionError):
        allowed.add(-11, held=0)


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.booleans()), max_size=20), sizes)
def test_limits_are_the_sum_of_what_is_open(steps, held) -> None:
    allowed, opened = Allowances(), []
    for size, close in steps:
        if close and opened:
            limit = allowed.add(-opened.pop(), held)
        else:
            opened.append(size)
            limit = allowed.add(size, held)
        assert limit == (held + sum(opened) if opened else None)


def use(**changes):
    planned = {"neurons": 100, "kv": 50, "context": 30}
    usual = {"where": "GPU memory", "total": 1000, "budget": 200, "planned": planned, "placed": planned}
    return DeviceUse(**{**usual, "process": 180, **changes})


def test_nothing_is_said_where_the_plan_is_kept():
    assert use().warnings == ()
    assert use(process=None).warnings == ()
    assert use(placed={"neurons": 90}).warnings == ()


def test_what_is_more_than_planned_is_said_by_purpose_and_of_the_process():
    (line,) = use(placed={"neurons": 100, "kv": 70, "predictors": 0}).warnings
    assert line == "kv took 70 B of GPU memory, 20 B more than planned"
    (line,) = use(process=260).warnings
    assert "the process takes 260 B of GPU memory, 60 B more than its budget" in line
    assert "--vram" in line
    assert len(use(placed={"neurons": 101, "heads": 1}, process=201).warnings) == 3
