"""Which neurons fired, as the engine tells: in every mode, on both units, recorded and eager, alone and in a batch."""

import threading

import numpy as np
import pytest
import torch

from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.runtime.tally import RESIDENCES, Firing, rows_of_bucket
from hybrid.stages.opening import open_engine
from profiler.artifacts import UserError

MODES = ["dense", "exact", "predicted"]


class Watching:
    """A tap that counts rows itself: those that the mode adds up, of which it is shown all activations."""

    def __init__(self, layers, rows):
        self.fired, self.tokens = np.zeros((layers, rows), np.int64), 0

    def ffn(self, layer, x, activations, named):
        rows = torch.ones_like(activations, dtype=torch.bool) if named is None else named & (activations != 0)
        self.fired[layer] += rows.sum(0).cpu().numpy()
        self.tokens += len(x) if layer == 0 else 0


def by_bucket(rows: np.ndarray, firing: Firing) -> np.ndarray:
    return np.add.reduceat(rows, np.arange(0, firing.neurons, firing.bucket_rows), axis=1)


def opened(path, **options):
    return open_engine(path, context=256, kv_format="f32", threads=1, tally=True, **options)


@pytest.mark.parametrize("mode", MODES)
def test_counts_are_those_of_the_activations_of_all_rows(demo, heldout, mode):
    with opened(demo, mode=mode) as engine:
        ids, spec = engine.tokenizer.encode(heldout)[:120], engine.directory.spec
        tap = Watching(spec.n_layers, spec.n_neurons)
        engine.logits(ids, tap=tap)
        first = engine.firing()
        engine.logits(ids)
        native = engine.firing()
        engine.logits(ids, one_by_one=True)
        single = engine.firing()
    with opened(demo, mode=mode, prefill_tokens=64) as engine:  # by torch, but for the last of them
        engine.logits(ids)
        eager = engine.firing()
    expected = by_bucket(tap.fired, first)
    assert expected.sum() > 100 * len(ids), "little fires: a count of nothing would agree"
    for now, before in ((eager, None), (native, first), (single, native)):
        counts = now.counts["cpu"] - (0 if before is None else before.counts["cpu"])
        # An activation next to zero may fall to either side when sums are ordered otherwise: rarely.
        assert np.abs(counts - expected).sum() <= (0 if mode == "dense" else 2e-3 * expected.sum())
        assert (now.tokens == (0 if before is None else before.tokens) + len(ids)).all()
        shares = now.shares(before)
        np.testing.assert_allclose(shares, counts / (len(ids) * now.bucket_sizes))
        assert shares.max() <= 1
    if mode == "dense":
        assert (native.shares(first) == 1).all()
    else:
        assert native.shares(first).mean() < 0.5


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_both_units_of_a_split_layer_count_their_own_rows(demo, heldout, split_plan, open_stand_in, mode, one_by_one):
    with (
        opened(demo, mode=mode) as one,
        open_stand_in(split_plan, mode, tally=True, threads=1) as two,
    ):
        ids = one.tokenizer.encode(heldout)[:40]
        for engine in (one, two):
            engine.logits(ids, one_by_one)
        whole, parts, done = one.firing(), two.firing(), two.ledger.evaluation
        layers = [split_plan.gpu_rows(index) for index in range(len(split_plan.layers))]
    assert {unit: int(counts.sum()) for unit, counts in parts.counts.items()} == {
        "gpu": done.gpu.finished,
        "cpu": done.cpu.finished,
    }
    total = parts.counts["gpu"] + parts.counts["cpu"]
    assert np.abs(total - whole.counts["cpu"]).sum() <= 2e-3 * total.sum()
    assert any(0 < rows < parts.neurons for rows in layers)
    for index, rows in enumerate(layers):  # rows lie hottest first: the GPU's are the first
        last = -(-rows // parts.bucket_rows)
        assert parts.counts["gpu"][index, last:].sum() == 0
        assert parts.counts["cpu"][index, : rows // parts.bucket_rows].sum() == 0
        named = [RESIDENCES[place] for place in parts.resident[index]]
        assert set(named[: rows // parts.bucket_rows]) <= {"gpu"}
        assert set(named[last:]) <= {"ram"}


@pytest.mark.parametrize(
    ("family", "mode"), [("opt", "exact"), ("bamboo", "exact"), ("llama", "threshold"), ("prosparse", "dense")]
)
def test_every_kind_of_layer_on_a_device_and_the_host(tiny, one_unit, two_units, family, mode):
    path, cutoffs = tiny(family), (0.05, 0.1) if mode == "threshold" else None
    layers = ("gpu:0.4g 0.6c", "cpu:0.2g 0.5c 0.3g")
    with (
        one_unit(path, mode, cutoffs=cutoffs, tally=True) as one,
        two_units(path, *layers, mode=mode, cutoffs=cutoffs, tally=True) as two,
    ):
        ids = [5, 90, 17, 230]
        for engine in (one, two):
            engine.logits(ids)
        whole, parts, done = one.firing(), two.firing(), two.ledger.evaluation
        recorded = two.machine.recorded
        assert recorded is not None
    total = sum(parts.counts.values())
    assert np.abs(total - whole.counts["cpu"]).sum() <= 2  # an activation of nearly zero
    assert total.sum() > len(ids) * 20
    assert (parts.tokens == len(ids)).all() and (whole.tokens == len(ids)).all()
    assert all(counts.sum() > 0 for counts in parts.counts.values())
    assert parts.counts["gpu"].sum() <= done.gpu.finished
    if family != "bamboo":  # there up projections are finished that add nothing
        assert total.sum() == done.gpu.finished + done.cpu.finished


def test_a_batch_counts_each_of_its_tokens(demo):
    texts = ["def parse_args(", "class Stack:\n", "import os\n"]
    found = []
    for together in (True, False):
        with opened(demo, mode="predicted", max_sequences=4) as engine:
            prompts = [engine.tokenizer.encode(text) for text in texts]
            for group in [prompts] if together else [[ids] for ids in prompts]:
                sequences = [Sequence(ids, SamplingParams(max_tokens=8), engine.tokenizer) for ids in group]
                for _ in engine.run(sequences):
                    pass
            found.append(engine.firing())
    together, alone = found
    assert np.array_equal(together.counts["cpu"], alone.counts["cpu"])
    assert np.array_equal(together.tokens, alone.tokens)


def test_what_was_told_does_not_change_and_other_threads_may_ask(demo):
    with opened(demo, mode="exact") as engine:
        before, found = engine.firing(), []
        asking = threading.Thread(target=lambda: found.extend(engine.firing() for _ in range(200)))
        asking.start()
        engine.logits(list(range(3, 40)), one_by_one=True)
        asking.join()
        after = engine.firing()
    assert before.tokens.sum() == 0 and before.counts["cpu"].sum() == 0
    assert after.tokens.tolist() == [37] * len(after.tokens)
    tokens = [int(firing.tokens[0]) for firing in [before, *found, after]]
    assert tokens == sorted(tokens)
    with pytest.raises(ValueError, match="read-only"):
        after.counts["cpu"][0, 0] = 1


def test_nothing_is_counted_unasked(demo):
    with open_engine(demo, mode="exact", threads=1) as engine:
        assert all(bank.buckets is None for bank in engine.machine.banks)
        with pytest.raises(UserError, match="tally"):
            engine.firing()


@pytest.mark.parametrize("neurons", [1, 72, 255, 256, 257, 1376, 5632, 11008, 1 << 20])
def test_a_layer_has_few_buckets_of_a_power_of_two(neurons):
    rows = rows_of_bucket(neurons)
    assert rows & (rows - 1) == 0
    assert -(-neurons // rows) <= 256
    assert rows == 1 or -(-neurons // (rows // 2)) > 256
