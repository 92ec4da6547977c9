"""`hybrid run --trace` and `--no-overlap` as a user types them, and the same from Python."""

import json
import signal
import subprocess
import sys
import time

import pytest

from hybrid import LLM, SamplingParams
from profiler.artifacts import UserError

ON_BOTH = ("--second-device", "cpu")


@pytest.fixture(scope="module")
def planned(demo, tmp_path_factory):
    """The path of a plan of the demo over two units."""
    from hybrid.stages.plan import PlanSettings
    from hybrid.stages.plan import plan as make_plan
    from placement.plan_file import write_plan

    path = tmp_path_factory.mktemp("plans") / "split.json"
    write_plan(path, make_plan(demo, PlanSettings(vram=8 << 20, context=256)).plan)
    return path


def test_run_writes_a_trace_and_says_what_is_in_it(hybrid, demo, planned, tmp_path):
    path = tmp_path / "trace.json"
    plain = hybrid("run", demo, "class Stack:", "-n", 8, "--plan", planned, *ON_BOTH)
    traced = hybrid(
        "run", demo, "class Stack:", "-n", 8, "--plan", planned, *ON_BOTH, "--trace", path, "--trace-steps", 3
    )
    assert (traced[0], traced[1]) == (0, plain[1])
    assert f"3 of 7 decode steps in {path}" in traced[2]
    assert "ms beside attention" in traced[2]
    assert "hidden" in traced[2]
    document = json.loads(path.read_text())
    assert document["otherData"]["summary"]["tokens"] == 7
    assert document["otherData"]["steps"] == {"prompt": 1, "decode": 3}
    assert [e["name"] for e in document["traceEvents"] if e.get("cat") == "token"] == [
        f"token {i}" for i in range(1, 5)
    ]


def test_without_overlap_the_text_is_the_same_and_nothing_is_hidden(hybrid, demo, planned):
    plain = hybrid("run", demo, "class Stack:", "-n", 8, "--plan", planned, *ON_BOTH)
    code, out, err = hybrid("run", demo, "class Stack:", "-n", 8, "--plan", planned, *ON_BOTH, "--no-overlap")
    assert (code, out) == (0, plain[1])
    assert ", 0% of the smaller side hidden" in err


def test_compare_takes_no_overlap(hybrid, demo, planned, heldout, tmp_path):
    text = tmp_path / "text.py"
    text.write_text(heldout[:20_000], encoding="utf-8")
    options = ("--rounds", 1, "--prompts", 1, "-n", 3, "--text-tokens", 60, "--json", "--no-overlap")
    code, out, _ = hybrid("compare", demo, "--text", text, "--plan", planned, *ON_BOTH, *options)
    assert code == 0
    rows = json.loads(out)["rows"]
    assert {"exact", "predicted"} <= {row["mode"] for row in rows if row["tokens_per_second"] is not None}


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_computed(refused, demo, tmp_path):
    assert "cannot write trace.json" in refused(
        "run", demo, "x", "-n", 2, "--trace", tmp_path / "nowhere" / "trace.json"
    )


def test_one_unit_alone_is_traced_too(demo, tmp_path):
    path = tmp_path / "trace.json"
    with LLM(demo) as llm:
        with llm.trace(path) as trace:
            llm.generate(["def a(", "import "], SamplingParams(max_tokens=4, ignore_eos=True))
            with pytest.raises(RuntimeError, match="already"), llm.trace(tmp_path / "other.json"):
                pass
        assert trace.traced["decode"] == 3
        with pytest.raises(UserError, match="makes no sense"), llm.trace(path, steps=0):
            pass
        llm.generate("def a(", SamplingParams(max_tokens=2))
    document = json.loads(path.read_text())
    rows = {e["tid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"}
    assert {rows[e["tid"]] for e in document["traceEvents"] if e["ph"] == "X"} == {"steps", "CPU"}
    assert document["otherData"]["summary"]["hidden_share"] is None


def test_what_fails_while_it_is_traced_leaves_a_trace(demo, tmp_path):
    path = tmp_path / "trace.json"
    with LLM(demo) as llm:
        with pytest.raises(KeyboardInterrupt), llm.trace(path):
            for _ in llm.stream("import ", SamplingParams(max_tokens=8, ignore_eos=True)):
                raise KeyboardInterrupt
        assert llm.generate("import ", SamplingParams(max_tokens=2))
    assert [e for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "attention"]


def start(*arguments):
    command = [sys.executable, "-m", "hybrid.cli", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interrupt_ends_a_run_quietly_and_leaves_the_trace(demo, planned, tmp_path):
    path = tmp_path / "trace.json"
    slow = ("--slowdown", "gpu=50", "--slowdown", "cpu=50", "-n", 200)
    running = start(demo, "class Stack:", "--plan", planned, *ON_BOTH, *slow, "--trace", path, "--trace-steps", 1000)
    shown = running.stdout.read(len("class Stack:") + 12)  # several tokens have come
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert "ignored" not in err
    document = json.loads(path.read_text())
    assert document["otherData"]["steps"]["decode"] >= 1
    assert len(shown + out) > len("class Stack:")
    assert {"GPU", "CPU"} <= {e["args"].get("name") for e in document["traceEvents"] if e["ph"] == "M"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_an_interrupt_is_quiet_at_any_moment(demo, planned):
    for seconds in (0.8, 1.2, 1.6, 2.0, 2.4, 3, 4, 6):
        running = start(demo, "class Stack:", "--plan", planned, *ON_BOTH, "--slowdown", "gpu=50", "-n", 200)
        time.sleep(seconds)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode in (0, 130, -signal.SIGINT)  # the last: while modules were loaded
        assert "Traceback" not in err
        assert "ignored" not in err
