"""On a CUDA device: steps as graphs against the same pieces issued one by one, what a graph takes, and its end."""

import logging

import pytest
import torch

from hybrid.runtime.activity import Activity

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

BOTH = ("gpu:0.4g 0.6c", "cpu:0.2g 0.5c 0.3g")
IDS = [5, 90, 17, 230, 8, 44, 301, 12]


class Spans(list):
    """Spans as a trace is told of them."""

    def add(self, unit, layer, kind, begin, end):
        self.append((unit, layer, kind, begin, end))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("weight_format", ["bf16", "q8_0", "q4_0"])
def test_a_graph_gives_the_bits_of_its_pieces(tiny, two_units, weight_format, overlap):
    path = tiny("llama", weight_format)
    with two_units(path, *BOTH, embeddings="gpu", head="gpu", overlap=overlap) as engine:
        streams = engine.machine.recorded._streams
        streams._captures = False
        alone, together = engine.logits(IDS, one_by_one=True), engine.logits(IDS)
        assert torch.equal(engine.logits(IDS, one_by_one=True), alone)
        assert not streams._graphs
        streams._captures = True
        for _ in range(3):
            assert torch.equal(engine.logits(IDS, one_by_one=True), alone)
            assert torch.equal(engine.logits(IDS), together)
        assert set(streams._graphs) == {("step", 1, False), ("step", len(IDS), False)}


def test_tokens_are_decoded_by_one_graph_each(tiny, one_unit, two_units, complete, caplog):
    path, prompts = tiny("llama"), [IDS, IDS[2:5], IDS[:1]]
    with one_unit(path, max_sequences=3) as one:
        expected = complete(one, prompts, 8)
    with (
        caplog.at_level(logging.WARNING),
        two_units(path, *BOTH, embeddings="gpu", head="gpu", max_sequences=3) as two,
    ):
        for _ in range(2):
            assert complete(two, prompts, 8) == expected
        assert ("step", 3, True) in two.machine.recorded._streams._graphs
        assert two.ledger.decode.overlap.far == 0, "what is replayed is not timed"
    assert not caplog.records


def test_a_capture_takes_no_memory_of_the_allocator(tiny, two_units):
    with two_units(tiny("llama"), *BOTH, embeddings="gpu", head="gpu") as engine:
        engine.logits(IDS[:2], one_by_one=True)
        before = torch.cuda.memory_allocated()
        engine.logits(IDS[:4], one_by_one=True)
        assert engine.machine.recorded._streams._graphs
        assert torch.cuda.memory_allocated() <= before + (1 << 10)  # the state of torch's random numbers


def test_a_driver_that_captures_nothing_is_told_of_once(tiny, two_units, monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise RuntimeError("CUDA error: operation not permitted")

    with two_units(tiny("llama"), *BOTH, embeddings="gpu", head="gpu") as engine, caplog.at_level(logging.WARNING):
        expected = engine.logits(IDS, one_by_one=True)
        streams = engine.machine.recorded._streams
        streams._graphs.clear()
        monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", refuse)
        for _ in range(3):
            assert torch.equal(engine.logits(IDS, one_by_one=True), expected)
        assert not streams._graphs
    assert [record.getMessage().count("piece by piece") for record in caplog.records] == [1]


def test_a_traced_step_is_timed_by_the_device(tiny, two_units):
    from array import array

    from hybrid.model.eager import Step
    from hybrid.model.kv_cache import Span

    with two_units(tiny("llama"), *BOTH, embeddings="gpu", head="gpu") as engine, torch.inference_mode():
        recorded, blocks, spans, activity = engine.machine.recorded, array("q", [0]), Spans(), Activity()
        step = Step(IDS[:1], [Span(blocks, 0, 1)])
        expected = recorded.run(step, activity).clone()
        assert activity.overlap.far == 0
        assert torch.equal(recorded.run(step, activity, spans), expected)
        assert activity.overlap.near > 0
        assert activity.overlap.far > 0
        assert 0 <= activity.overlap.hidden <= activity.overlap.smaller
        assert {unit for unit, *_ in spans} == {"gpu", "cpu"}
        assert all(begin <= end for *_, begin, end in spans)
        assert torch.equal(recorded.run(step, activity), expected)


def test_memory_is_given_back_when_an_engine_is_closed(tiny, two_units):
    path = tiny("llama")
    with two_units(path, *BOTH, embeddings="gpu", head="gpu") as engine:
        engine.logits(IDS, one_by_one=True)
    del engine
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with two_units(path, *BOTH, embeddings="gpu", head="gpu") as engine:
        engine.logits(IDS, one_by_one=True)
        assert torch.cuda.memory_allocated() > before
    del engine
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
