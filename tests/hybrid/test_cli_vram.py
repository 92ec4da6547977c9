"""Budgets of GPU memory on the command line, with a stand-in for the GPU: planned on the spot, kept, and told of."""

import json
from dataclasses import replace

import pytest
import torch

from hybrid import LLM, reports
from hybrid.runtime import vram
from hybrid.runtime.vram import DeviceUse
from hybrid.stages import opening, plan_defaults
from profiler.artifacts import UserError

MIB = 1 << 20
RUN = ("run", "--second-device", "cpu", "--context", 256, "-n", 6)


@pytest.fixture
def demo_copy(demo_copy):
    """A model directory of one's own, without a plan by default."""
    (demo_copy / "plans" / "default.json").unlink(missing_ok=True)
    return demo_copy


@pytest.fixture
def free(monkeypatch):
    """`free(size)`: what ordinary memory, of which the stand-in is made, has left."""
    return lambda size: monkeypatch.setattr(vram, "available_memory", lambda: size)


def test_a_budget_makes_a_plan_that_is_not_kept(hybrid, demo_copy):
    code, out, err = hybrid(*RUN, demo_copy, "def main(", "--vram", "7MiB")
    assert code == 0 and out.startswith("def main(")
    assert "gpu 7.0 MiB of 7.0 MiB (" in err
    assert "warning" not in err
    assert not (demo_copy / "plans" / "default.json").exists()
    code, whole, _ = hybrid("run", demo_copy, "def main(", "-n", 6, "--context", 256, "--vram", 0)
    assert (code, whole) == (0, out)


def test_what_a_budget_came_to_is_part_of_the_json(hybrid, demo):
    code, out, _ = hybrid(*RUN, demo, "def main(", "--vram", "7MiB", "--json")
    assert code == 0
    summary = json.loads(out)["summary"]
    use = summary["vram"]
    assert use["budget"] == 7 * MIB >= sum(use["planned"].values())
    assert use["placed"] == summary["memory"]["gpu"] == {k: v for k, v in use["planned"].items() if v}
    assert use["process"] is None, "what stands for a GPU is no part of a process that could be told from others"
    assert summary["vram_warnings"] == []


def test_a_default_plan_that_no_longer_fits_is_made_anew_with_a_warning_and_a_named_one_is_refused(
    hybrid, refused, demo_copy, free
):
    assert hybrid("plan", demo_copy, "--vram", "7MiB", "--context", 256)[0] == 0
    code, out, err = hybrid(*RUN, demo_copy, "def main(")
    assert code == 0 and "warning" not in err
    free(6 * MIB)
    code, again, err = hybrid(*RUN, demo_copy, "def main(")
    assert (code, again) == (0, out)
    assert "warning: the plan default takes 7.0 MiB of host memory and 6.0 MiB are free" in err
    assert "planned now for 5.5 MiB of the 6.0 MiB that are free on the GPU, " in err
    message = refused(*RUN, demo_copy, "def main(", "--plan", "default")
    assert "the plan takes 7.0 MiB of host memory and 6.0 MiB are free" in message
    assert f"hybrid plan {demo_copy} --vram 6MiB" in message


def test_budgets_that_cannot_be_kept_are_refused(refused, demo_copy, free):
    assert "--plan, or --vram" in refused(*RUN, demo_copy, "x", "--plan", "default", "--vram", "7MiB")
    assert "not a size" in refused(*RUN, demo_copy, "x", "--vram", "lots")
    free(6 * MIB)
    message = refused(*RUN, demo_copy, "x", "--vram", "7MiB")
    assert "--vram asks for 7.0 MiB and 6.0 MiB of host memory are free" in message
    if not torch.cuda.is_available():
        assert "no CUDA device" in refused("run", demo_copy, "x", "--vram", "7MiB")


def test_as_a_python_object_a_budget_may_be_text_and_choices_warn(hybrid, demo_copy, free):
    with LLM(demo_copy, device="cpu", vram="7MiB", context=256, max_sequences=1) as llm:
        assert llm.summary().vram.budget == 7 * MIB
    assert hybrid("plan", demo_copy, "--vram", "7MiB", "--context", 256)[0] == 0
    free(6 * MIB)
    with (
        pytest.warns(UserWarning, match="6.0 MiB are free"),
        LLM(demo_copy, device="cpu", context=256, max_sequences=1) as llm,
    ):
        assert llm.summary().vram.budget < 6 * MIB
    heard = []
    with LLM(demo_copy, device="cpu", context=256, max_sequences=1, note=heard.append):
        assert len(heard) == 1


def test_a_run_that_takes_more_than_its_budget_says_so(demo):
    with LLM(demo, device="cpu", vram="7MiB", context=256, max_sequences=1) as llm:
        summary = llm.summary()
    use = DeviceUse("GPU memory", 8 << 30, 7 * MIB, {"neurons": 5}, {"neurons": 5}, 9 * MIB)
    lines = reports.run_lines(replace(summary, vram=use, vram_warnings=use.warnings), 0.1)
    assert "of 7.0 MiB, the process takes 9.0 MiB (" in lines[1]
    assert lines[2].startswith("warning: the process takes 9.0 MiB of GPU memory, 2.0 MiB more than its budget")


def test_planning_for_this_machine_asks_what_is_free(refused, hybrid, demo_copy, free, monkeypatch):
    monkeypatch.setattr(plan_defaults, "free_vram", lambda: 5 << 30)
    message = refused("plan", demo_copy, "--vram", "6GiB")
    assert "--vram asks for 6.0 GiB and 5.0 GiB of GPU memory are free" in message
    code, out, _ = hybrid("plan", demo_copy, "--context", 256)
    assert code == 0
    assert "note: GPU memory: 5.0 GiB are free, less a margin of 512.0 MiB" in out
    assert "768.0 MiB of GPU memory, which is nominal, not measured; hybrid hardware measures it" in out
    assert "| context " in out and "| 768.0 MiB |" in out


def test_a_gpu_that_cannot_be_used_or_planned_for_leaves_the_cpu_to_compute(demo, llama_directory, monkeypatch):
    def full(device):
        raise UserError("the GPU cannot be used (out of memory)")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(opening, "device_memory", full)
    told = []
    with LLM(demo, context=256, note=told.append) as llm:
        assert llm.summary().vram is None
    assert told == ["computed on the CPU alone: the GPU cannot be used (out of memory)"]
    with pytest.raises(UserError, match="cannot be used"):
        LLM(demo, vram="1GiB")
    with LLM(llama_directory, note=told.append) as llm:
        assert llm.summary().vram is None
    assert told[1:] == told[:1]
    monkeypatch.setattr(opening, "device_memory", lambda device: pytest.fail("a context would be made for nothing"))
    with LLM(demo, vram=0, context=256, note=told.append):
        assert len(told) == 2
