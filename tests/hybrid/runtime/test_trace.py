"""Traces: what is in them is what was done, by the row of each unit, and the summary says what they show."""

import itertools
import json
import math
import time
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.runtime.activity import Overlap
from hybrid.runtime.summary import summarise
from hybrid.runtime.timing import SplitTimes, StepTimes
from hybrid.runtime.trace import MOST_SPANS, Trace
from profiler.artifacts import UserError

ROUNDED = 1e-3 + 1e-9  # microseconds: ends of spans are rounded to a nanosecond
KINDS = {"embeddings", "norms", "linear", "attention", "sums", "predictors", "feed-forward", "hand-over", "waiting"}
NATIVE_KINDS = KINDS | {"positions", "pages"}


def spans_of(events):
    """Spans by the name of their row, in the order of time: (begin, end, kind, layer)."""
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            found[rows[e["tid"]]].append((e["ts"], e["ts"] + e["dur"], e["cat"], e["args"].get("layer")))
    return {row: sorted(spans) for row, spans in found.items()}


def events_of(trace, path):
    trace.write(path, {"model": "demo"})
    return json.loads(path.read_text())["traceEvents"]


def split_layers(rows):
    """Of each layer and step on both units: microseconds of the near side, of the far side, and of both at once."""
    for here, there in (("GPU", "CPU"), ("CPU", "GPU")):
        handed = [(begin, end, layer) for begin, end, kind, layer in rows.get(here, ()) if kind == "hand-over"]
        for began, since, layer in handed:
            following = [begin for begin, _, kind, _ in rows[here] if begin >= since and kind == "sums"]
            until = min(following, default=float("inf"))

            def during(row, began=began, until=until, layer=layer):
                return [s for s in rows[row] if s[2:] == ("feed-forward", layer) and began <= s[0] < until]

            near, far = during(here), during(there)
            at_once = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in near for b in far)
            yield *(sum(end - begin for begin, end, _, _ in side) for side in (near, far)), at_once


def hidden_share(layers):
    return sum(at_once for *_, at_once in layers) / sum(min(near, far) for near, far, _ in layers)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("mode", ["dense", "predicted"])
def test_the_summary_says_what_the_spans_show(
    open_stand_in, split_plan, complete, without_recorded_step, tmp_path, mode, recorded, overlap
):
    slowdown = {"gpu": 30.0, "cpu": 30.0} if recorded else {"gpu": 5.0, "cpu": 5.0}
    with open_stand_in(split_plan, mode, slowdown=slowdown, overlap=overlap) as engine:
        if not recorded:
            without_recorded_step(engine)
        engine.trace = Trace()
        complete(engine, [[5, 6, 7]], 4)
        shown, layers = summarise(engine), engine.directory.spec.n_layers
        split = sum(bool(layer.far_banks) for layer in engine.machine.scheduler.layers)
        events = events_of(engine.trace, tmp_path / "trace.json")
    rows = spans_of(events)
    assert set(rows) == {"steps", "GPU", "CPU"}
    for spans in rows.values():
        assert all(end >= begin for begin, end, _, _ in spans)
        assert all(after[0] >= before[1] - ROUNDED for before, after in itertools.pairwise(spans))
    kinds = {kind for row in ("GPU", "CPU") for _, _, kind, _ in rows[row]}
    assert kinds == (NATIVE_KINDS if recorded else KINDS) - (set() if mode == "predicted" else {"predictors"})
    assert {layer for _, _, kind, layer in rows["GPU"] if kind == "attention"} == set(range(layers))
    steps = {kind: [(begin, end) for begin, end, k, _ in rows["steps"] if k == kind] for kind in ("prompt", "decode")}
    assert [len(of_kind) for of_kind in steps.values()] == [1, 3]
    began, ended = steps["decode"][0][0], steps["decode"][-1][1]
    decode = {row: [span for span in spans if began <= span[0] <= ended] for row, spans in rows.items()}
    found = list(split_layers(decode))
    assert len(found) == 3 * split
    assert shown.hidden_share == pytest.approx(hidden_share(found), abs=1e-3)
    sides = {"near": 0, "far": 1}
    for side, place in sides.items():
        assert shown.split_milliseconds[side] == pytest.approx(sum(f[place] for f in found) / 3 / 1000, rel=1e-3)
    if not overlap:
        assert all(at_once == 0 for *_, at_once in found)
        assert shown.hidden_share == 0


def test_both_units_compute_at_the_same_time_where_both_take_long(open_stand_in, split_plan, complete, tmp_path):
    for _ in range(60):  # far more often than it takes, unless others never leave two cores of this machine alone
        time.sleep(0.02)
        with open_stand_in(split_plan, "dense", slowdown={"gpu": 100.0, "cpu": 100.0}) as engine:
            engine.trace = Trace()
            complete(engine, [[5, 6, 7]], 4)
            share, events = summarise(engine).hidden_share, events_of(engine.trace, tmp_path / "trace.json")
        both = [at_once for near, far, at_once in split_layers(spans_of(events)) if min(near, far) > 1000]
        if sum(at_once > 0 for at_once in both) > len(both) / 2 and share > 0.5:  # it is 0 where they take turns
            return
    raise AssertionError(f"{share:.0%} of the smaller side were hidden")


@pytest.mark.parametrize("steps", [1, 2])
def test_only_the_first_steps_are_traced(open_stand_in, split_plan, complete, tmp_path, steps):
    path = tmp_path / "trace.json"
    with open_stand_in(split_plan) as engine:
        engine.trace, prompts = Trace(steps), math.ceil(40 / engine.machine.prefill_tokens)
        assert prompts > steps
        complete(engine, [[5 + i for i in range(40)]], 6)
        trace, engine.trace = engine.trace, None
        size = len(trace)
        complete(engine, [[5, 6, 7]], 3)
        assert len(trace) == size
        events = events_of(trace, path)
    assert dict(trace.seen) == {"prompt": prompts, "decode": 5}
    kinds = [kind for _, _, kind, _ in spans_of(events)["steps"]]
    assert kinds == ["prompt"] * steps + ["decode"] * steps
    other = json.loads(path.read_text())["otherData"]
    assert other["steps_left_out"] == {"prompt": prompts - steps, "decode": 5 - steps}
    assert other["model"] == "demo"


def test_the_bits_are_those_of_a_run_that_is_not_traced(open_stand_in, split_plan, complete):
    with open_stand_in(split_plan) as engine:
        plain = complete(engine, [[5, 6, 7]], 8)
        engine.trace = Trace(1)
        assert complete(engine, [[5, 6, 7]], 8) == plain


def test_a_step_that_fails_leaves_what_it_got_to(open_stand_in, split_plan, complete, tmp_path):
    with open_stand_in(split_plan, "dense") as engine:
        complete(engine, [[5, 6, 7]], 2)
        engine.trace = Trace()
        pool = engine.machine.scheduler.layers[-1].far.pool
        hand = engine.machine.recorded.run
        engine.machine.recorded.run = lambda *arguments: (hand(*arguments), pool.nothing)
        with pytest.raises(AttributeError):
            complete(engine, [[5, 6, 7]], 2)
        events = events_of(engine.trace, tmp_path / "trace.json")
    assert [kind for _, _, kind, _ in spans_of(events)["steps"]] == ["prompt"]
    assert len(spans_of(events)["GPU"]) > 10


@pytest.mark.parametrize("steps", [0, -1, MOST_SPANS + 1])
def test_numbers_of_steps_that_make_no_sense(steps):
    with pytest.raises(UserError, match="makes no sense"):
        Trace(steps)


times = st.floats(0, 1e-2, allow_nan=False)


@given(st.lists(times, min_size=2, max_size=30))
def test_spans_that_touch_still_do_when_they_are_written(tmp_path_factory, lengths):
    trace, at, ends = Trace(), 1e5, []
    with trace.step("decode") as spans:
        for i, length in enumerate(lengths):
            spans.add("gpu", i, "linear", at, at + length)
            at += length
            ends.append(at)
    events = [e for e in events_of(trace, tmp_path_factory.mktemp("t") / "t.json") if e.get("cat") == "linear"]
    assert [e["name"] for e in events] == [f"linear {i}" for i in range(len(lengths))]
    for before, after in itertools.pairwise(events):
        assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=1e-4)  # of 1e11 microseconds
        assert before["dur"] >= 0


@given(st.lists(times, min_size=6, max_size=6), st.booleans())
def test_of_both_sides_no_more_is_hidden_than_the_smaller_one_takes(lengths, gpu_is_late):
    """Whatever the order of ends, also where a GPU computes long after the host has waited."""
    handing, handed, near, far, gap, waiting = lengths
    handed = handing + handed
    near_began = handed + (gap if gpu_is_late else 0)
    layer = SplitTimes(
        3, ("gpu", "cpu"), handing, handed, (near_began, near_began + near), (handed, handed + far),
        (handed + (0 if gpu_is_late else near), handed + (0 if gpu_is_late else near) + waiting),
    )  # fmt: skip
    step, trace, overlap = StepTimes(), Trace(), Overlap()
    step.split(layer)
    step.settle(overlap, trace)
    assert 0 <= overlap.hidden <= overlap.smaller <= min(overlap.near, overlap.far) + 1e-12
    assert overlap.wait >= 0
    rows = spans_of([*trace._metadata(), *trace._events])
    spans = rows["GPU"]
    assert all(after[0] >= before[1] - 2 * ROUNDED for before, after in itertools.pairwise(spans))
