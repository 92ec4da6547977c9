"""Mode threshold: what it computes, alone and recorded, split over units, and how its cutoffs are changed."""

import dataclasses
from pathlib import Path

import pytest
import torch

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.summary import summarise
from hybrid.stages.pack import pack
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError
from profiler.thresholds import Loss

CUTOFFS = (0.05, 0.2, 0.0)
IDS = [5, 90, 17, 230, 8, 44, 301, 12, 66, 7, 19, 120, 33, 2, 87, 150, 61, 9, 240, 77]  # more than a recorded step's


class Seen:
    """A tap that keeps everything."""

    def __init__(self):
        self.gates, self.activations, self.named = {}, {}, {}

    def document(self):
        pass

    def gate(self, layer, values):
        self.gates[layer] = values

    def ffn(self, layer, hidden, activation, named):
        assert layer in self.gates
        self.activations[layer], self.named[layer] = activation, named


@pytest.fixture(scope="module")
def silu(make_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("silu")
    return pack(make_llama(folder, hidden_act="silu"), folder / "model").destination


def opened(path, mode="threshold", cutoffs=CUTOFFS, **options):
    """An engine."""
    cutoffs = cutoffs if mode == "threshold" else None
    return Engine(ModelDirectory.open(path), EngineOptions(mode=mode, cutoffs=cutoffs, **options))


def test_it_is_the_model_whose_activation_is_cut_off(silu, monkeypatch):
    """Against the dense mode of a decoder whose activation function itself is cut off, in torch."""
    from hybrid.ops import reference

    with opened(silu) as engine:
        found = engine.logits(IDS)
        one_by_one = engine.logits(IDS, one_by_one=True)
        rows = engine.ledger.evaluation.cpu
        assert rows.gated == 2 * 3 * 123 * len(IDS)
        assert 0.4 * rows.gated < rows.finished < 0.95 * rows.gated
    torch.testing.assert_close(one_by_one, found, atol=1e-4, rtol=1e-4)
    calls, activate = [], reference.activate

    def cut(activation, values):
        layer = len(calls) % 3
        calls.append(layer)
        values = activate(activation, values)
        return torch.where(values.abs() <= CUTOFFS[layer], 0, values)

    monkeypatch.setattr(reference, "activate", cut)
    with opened(silu, "dense", prefill_tokens=64) as engine:
        expected = engine.logits(IDS)
    assert len(calls) == 3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_cutoffs_of_zero_are_dense_mode(silu):
    with opened(silu, cutoffs=(0.0,) * 3) as engine, opened(silu, "dense") as dense:
        assert torch.equal(engine.logits(IDS), dense.logits(IDS))


def test_cutoffs_of_an_open_engine_can_be_changed(silu):
    with opened(silu) as engine, opened(silu, cutoffs=(0.3, 0.1, 0.02)) as other:
        before = engine.logits(IDS)
        engine.set_cutoffs((0.3, 0.1, 0.02))
        assert torch.equal(engine.logits(IDS), other.logits(IDS))
        assert engine.options == other.options
        engine.set_cutoffs(CUTOFFS)
        assert torch.equal(engine.logits(IDS), before)
        for wrong in ((0.1,), (0.1, 0.1, float("nan")), (0.1, -1.0, 0.1)):
            with pytest.raises(UserError, match="cutoff"):
                engine.set_cutoffs(wrong)
        assert torch.equal(engine.logits(IDS), before)
    with opened(silu, "dense") as dense, pytest.raises(UserError, match="no other mode"):
        dense.set_cutoffs(CUTOFFS)


def test_a_tap_is_shown_everything_and_what_the_mode_adds_up(silu):
    dense_seen, seen = Seen(), Seen()
    with opened(silu, "dense") as dense:
        dense.hidden_states(IDS, tap=dense_seen)
    with opened(silu) as engine:
        tapped = engine.hidden_states(IDS, tap=seen)
        torch.testing.assert_close(tapped, engine.hidden_states(IDS), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(seen.gates[0], dense_seen.gates[0])
    torch.testing.assert_close(seen.activations[0], dense_seen.activations[0])
    for layer, cutoff in enumerate(CUTOFFS):
        assert torch.equal(seen.named[layer], seen.gates[layer].abs() > cutoff)
        assert dense_seen.named[layer] is None
    assert 0 < int((~seen.named[1]).sum()) < seen.named[1].numel()


def test_without_a_gate_the_activation_of_the_up_projection_is_cut_off(make_arcee, tmp_path):
    path = pack(make_arcee(tmp_path), tmp_path / "model").destination
    seen = Seen()
    with opened(path) as engine:
        engine.logits(IDS)
        rows = engine.ledger.evaluation.cpu
        finished = rows.finished
        engine.hidden_states(IDS, tap=seen)
    named = sum(int(named.sum()) for named in seen.named.values())
    assert finished == pytest.approx(named, abs=2)
    assert torch.equal(seen.gates[1], seen.activations[1])


def test_a_model_with_a_cutoff_of_its_own(llama_directory, monkeypatch):
    """FATReLU in dense and exact mode, and under a threshold that is lower or higher."""
    spec = ModelDirectory.open(llama_directory).spec
    fat = dataclasses.replace(spec, activation_cutoff=0.15)
    with monkeypatch.context() as patch:
        patch.setattr(ModelDirectory, "spec", property(lambda self: fat))
        seen = Seen()
        with opened(llama_directory, "exact") as exact, opened(llama_directory, "dense") as dense:
            found = exact.logits(IDS)
            torch.testing.assert_close(found, dense.logits(IDS), atol=1e-5, rtol=1e-5)
            dense.hidden_states(IDS, tap=seen)
            shut = seen.gates[0] <= 0.15
            assert bool(((seen.activations[0] == 0) == shut).all())
            assert exact.ledger.evaluation.cpu.finished < 0.5 * exact.ledger.evaluation.cpu.gated
        with opened(llama_directory, cutoffs=(0.1, 0.15, 0.0)) as engine:
            assert torch.equal(engine.logits(IDS), found)
            engine.set_cutoffs((0.5, 0.15, 0.0))
            assert not torch.equal(engine.logits(IDS), found)
    with opened(llama_directory, cutoffs=(0.15,) * 3) as engine:
        assert torch.equal(engine.logits(IDS), found)


def test_what_it_costs_is_said(silu):
    loss = Loss("held.txt", 100, 10.0, 10.5, 1.05, None)
    with opened(silu) as engine, opened(silu, loss=loss) as measured, opened(silu, "dense") as dense:
        assert "loss not measured; hybrid eval" in summarise(engine).warning
        assert summarise(measured).warning == (
            "threshold mode, lossy: +5.00% perplexity measured on 100 tokens of held.txt"
        )
        assert summarise(measured).loss == loss
        assert summarise(dense).warning is None
        measured.set_cutoffs(CUTOFFS)
        assert summarise(measured).loss is None


@pytest.mark.parametrize("cutoffs", [None, (0.1, 0.1), (0.1, 0.1, float("inf")), (0.1, 0.1, -0.1)])
def test_cutoffs_that_do_not_fit_are_refused(silu, cutoffs):
    with pytest.raises(UserError, match="cutoff"):
        opened(silu, cutoffs=cutoffs)
