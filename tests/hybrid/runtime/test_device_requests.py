"""Requests on a device and the host: what is generated, what a trace is told, failures of any part, and the end."""

import gc
import json
import weakref
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hybrid.ops import cuda_weights
from hybrid.runtime.failures import DeviceError
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sampler import NumericalError, SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.runtime.trace import Trace
from profiler.artifacts import UserError

BOTH = ("gpu:0.4g 0.6c", "cpu:0.2g 0.5c 0.3g")
PROMPTS = [[5, 90, 17, 230, 8], [301, 12, 66]]
SHORT = [[301]]
LONG = [list(range(20, 40))]  # more than a recorded step takes


@pytest.fixture
def engine(tiny, two_units):
    with two_units(tiny("llama"), *BOTH, embeddings="gpu", head="gpu", max_sequences=2) as engine:
        yield engine


def test_sequences_generate_what_they_generate_on_the_host(tiny, one_unit, two_units, complete):
    path = tiny("llama")
    with one_unit(path, max_sequences=2) as one:
        expected = complete(one, PROMPTS, 2), complete(one, LONG, 2)
    with two_units(path, *BOTH, embeddings="gpu", head="gpu", max_sequences=2, prefill_tokens=4) as two:
        assert complete(two, PROMPTS, 2) == expected[0]
    with two_units(path, *BOTH) as two:
        assert complete(two, LONG, 2) == expected[1]
        done = two.ledger.decode
        assert done.tokens == 1
        assert 0 < done.native_seconds <= done.seconds
        assert done.overlap.smaller > 0


def test_a_trace_is_told_what_each_unit_does_one_after_the_other(engine, complete, tmp_path):
    alone, engine.trace = complete(engine, SHORT, 1), Trace()
    assert complete(engine, SHORT, 1) == alone
    once = len(engine.trace)
    assert complete(engine, SHORT, 1) == alone
    assert len(engine.trace) == 2 * once
    engine.trace.write(tmp_path / "trace.json", {})
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    units = {e["tid"]: e["args"]["name"].lower() for e in events if e["name"] == "thread_name"}
    rows = {unit: [e for e in events if e["ph"] == "X" and units[e["tid"]] == unit] for unit in ("gpu", "cpu")}
    spans = {(unit, e["args"].get("layer"), e["cat"]) for unit, row in rows.items() for e in row}
    for layer, attention, copies in ((0, "gpu", "cpu"), (1, "cpu", "gpu")):
        assert {("gpu", layer, "feed-forward"), ("cpu", layer, "feed-forward")} <= spans
        assert {(attention, layer, "attention"), (copies, layer, "copy")} <= spans
    assert {("gpu", None, "embeddings"), ("gpu", None, "linear"), ("gpu", None, "norms")} <= spans
    if engine.options.second_device == "interpreter":  # by one clock
        for row in rows.values():
            ordered = sorted(row, key=lambda e: e["ts"])
            assert all(e["ts"] + e["dur"] <= after["ts"] + 1e-3 for e, after in pairwise(ordered))


@pytest.mark.parametrize(("number", "error"), [(1, RuntimeError), (2, MemoryError)])
def test_a_failure_of_the_host_is_raised_once_and_the_next_request_works(engine, complete, number, error):
    """Of the far side of the first layer, which is the first program that is called."""
    expected, free, how = complete(engine, SHORT, 1), engine.pages.free, array("q", [0])
    engine.machine.recorded._recorder.programs[0]._fail(how.buffer_info()[0])
    for _ in range(2):
        how[0] = number
        for _ in range(2):
            with pytest.raises(error):
                complete(engine, SHORT, 1)
            assert engine.pages.free == free
        how[0] = 0
        assert complete(engine, SHORT, 1) == expected


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), UserError, "ran out of memory in a step"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), UserError, "ran out of memory in a step"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            DeviceError,
            "illegal memory access was encountered\\).*open the model anew",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["memory", "memory of the driver", "device", "interrupt"],
)
def test_a_failure_of_the_device_is_explained_and_what_it_took_is_given_back(
    engine, complete, monkeypatch, error, raised, message
):
    expected, free = complete(engine, SHORT, 1), engine.pages.free
    with monkeypatch.context() as patched:
        calls = []

        def failing(*arguments):
            calls.append(arguments)
            raise error

        patched.setattr(cuda_weights, "sparse_ffn", failing)
        with pytest.raises(raised, match=message):
            complete(engine, SHORT, 1)
        assert calls
    assert engine.pages.free == free
    assert complete(engine, SHORT, 1) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_numbers_that_are_none_are_told_of_and_stay_in_no_page(engine, complete, temperature):
    """The pages that the failed request leaves hold NaN, and the next request is given them."""
    expected = complete(engine, SHORT, 1)
    rows = next(bank for bank in engine.machine.banks if engine.machine.scheduler.layers[0].near_banks[0] is bank)
    weights, _ = rows.memory
    before = weights.clone()
    weights.fill_(float("nan"))
    params = SamplingParams(max_tokens=1, ignore_eos=True, temperature=temperature, seed=1)
    with pytest.raises(NumericalError, match="not finite"):
        list(engine.run([Sequence(PROMPTS[0], params, engine.tokenizer)]))
    pages = engine.decoder.layers[1].pages
    assert pages.keys.isnan().any()
    weights.copy_(before)
    assert complete(engine, SHORT, 1) == expected


def test_an_engine_gives_back_threads_and_buffers_when_it_is_closed(tiny, two_units, complete):
    path, tasks = tiny("llama"), Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("the system does not list threads")
    gc.collect()
    before = set(tasks.iterdir())
    gc.disable()
    try:
        engine = two_units(path, *BOTH, embeddings="gpu", head="gpu", threads=2)
        threads = set(tasks.iterdir()) - before
        assert len(threads) >= 2, "lanes of both kinds"
        complete(engine, SHORT, 1)
        recorded = engine.machine.recorded
        held = [weakref.ref(t) for t in (recorded._recorder.device.counts, recorded._hidden, recorded._logits)]
        held += [weakref.ref(t) for t in recorded._recorder.device.scratch._memory.values()]
        engine.close()
        assert [kept() for kept in held] == [None] * len(held)
        with pytest.raises(RuntimeError, match="closed"):
            engine.logits(PROMPTS[0])
        engine.close()
        del engine, recorded
        assert not threads & set(tasks.iterdir())
    finally:
        gc.enable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU to ask for")
def test_an_interpreted_gpu_is_asked_for_in_words(monkeypatch, tiny, two_units):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match="TRITON_INTERPRET=1"):
        two_units(tiny("llama"), *BOTH)
    with pytest.raises(UserError, match="needs a plan"):
        EngineOptions(mode="dense", second_device="interpreter")
