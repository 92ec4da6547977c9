"""Rows brought from host memory to another unit: the same sums, what is brought, both at once, and failures."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.streaming import RowStream, Slot, chunks_of
from hybrid.runtime.tally import Tally
from hybrid.runtime.unit import Unit, host_unit
from placement.plan import LayerPlan, Segment
from profiler.matrix import WEIGHT_FORMATS, Matrix

HIDDEN, ROWS, ROOM = 32, 60, 8
CPU = torch.device("cpu")


def second_unit(pool=True, kind=Unit):
    """A stand-in for a GPU; without a pool its operators are torch's, for few tokens too."""
    return kind("gpu", CPU, cpu.Pool(1) if pool else None, in_place=False, budget=None)


def make_bank(start, stop, weight_format="bf16", gated=True, cutoff=0.0):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(ROWS, HIDDEN, generator=generator) for _ in range(3 if gated else 2)]
    data = torch.cat([Matrix.quantised(part, weight_format).data for part in parts], 1)
    bias = None if gated else torch.randn(ROWS, generator=generator)
    return RowBank(
        data[start:stop], weight_format, HIDDEN, gated, "relu", None if bias is None else bias[start:stop],
        first_row=start, cutoff=cutoff,
    )  # fmt: skip


def always(index, tokens):
    return True


@pytest.fixture
def close():
    """Close streams and lanes when the test ends."""
    opened = []
    yield opened.append
    for one in opened:
        one.close()


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 40),
    cuts=st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS)).map(sorted),
    weight_format=st.sampled_from(WEIGHT_FORMATS),
    gated=st.booleans(),
    mode=st.sampled_from(["dense", "exact", "predicted"]),
    share=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    on_gpu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_streamed_rows_add_what_they_add_where_they_are(tokens, cuts, weight_format, gated, mode, share, on_gpu, seed):
    torch.manual_seed(seed)
    x, named = torch.randn(tokens, HIDDEN), torch.rand(tokens, ROWS) < share * torch.rand(ROWS)
    named = named if mode == "predicted" else None
    shape = {"weight_format": weight_format, "gated": gated, "cutoff": 0.3}
    banks = [make_bank(a, b, **shape) for a, b in ((0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], ROWS)) if a < b]
    gpu, host, lane = second_unit(), host_unit(1), ThreadLane()
    resident, cold = banks[:1], banks[1:]
    if not cold:
        resident, cold = [], banks
    layer = (
        SplitLayer(gpu, host, resident, cold, None, None)
        if on_gpu
        else SplitLayer(host, gpu, cold, resident, None, None)
    )
    tally = Tally(ROWS, [layer.units], [LayerPlan("cpu", (Segment(0, ROWS, "ram", "cpu"),))])
    scheduler = Scheduler([layer], mode, True, lane, tally=tally)
    stream = RowStream(gpu, cold[0], ROOM, always)
    try:
        expected = (
            scheduler._computed(0, x, named) if layer.far_banks else scheduler._rows(0, layer.near, cold, x, named)
        )
        tally.publish()
        there = tally.firing()
        before, scheduler.activity = scheduler.activity, type(scheduler.activity)()
        scheduler.stream = stream
        found = scheduler._computed(0, x, named)
        tally.publish()
        passed = tally.firing()
    finally:
        stream.close()
        lane.close()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    now = scheduler.activity
    assert now.cpu.gated == 0
    assert now.gpu.gated == before.gpu.gated + before.cpu.gated
    assert abs(now.gpu.finished - before.gpu.finished - before.cpu.finished) <= 2  # a gate that is all but zero
    assert (passed.counts["cpu"] == there.counts["cpu"]).all()
    counted, expected_counts = passed.counts["gpu"] - there.counts["gpu"], there.counts["gpu"] + there.counts["cpu"]
    assert counted.sum() == now.gpu.finished
    assert abs(counted - expected_counts).sum() <= 2
    wanted = torch.ones(ROWS, dtype=torch.bool) if named is None else named.any(0)
    least = sum(int(wanted[b.first_row :][: len(b)].sum()) * b.stride_bytes for b in cold)
    assert least <= now.streamed_bytes <= sum(len(b) * b.stride_bytes for b in cold)


@given(
    cut=st.integers(1, ROWS - 1),
    room=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_named_row_is_brought_once_and_few_others(cut, room, share, seed):
    torch.manual_seed(seed)
    banks, named = [make_bank(0, cut), make_bank(cut, ROWS)], torch.rand(3, ROWS) < share
    chunks = chunks_of(banks, named, room)
    brought = [row for chunk in chunks for row in torch.arange(ROWS)[chunk.columns].tolist()]
    assert len(set(brought)) == len(brought)
    assert all(1 <= len(chunk) <= room for chunk in chunks)
    union = named.any(0)
    assert set(union.nonzero().view(-1).tolist()) <= set(brought)
    assert all(union[chunk.columns].any() for chunk in chunks)
    for bank in banks:
        wanted = int(union[bank.first_row :][: len(bank)].sum())
        taken = sum(len(chunk) for chunk in chunks if chunk.bank is bank)
        assert taken == wanted or wanted > 0.75 * len(bank)
    everything = chunks_of(banks, None, room)
    assert torch.cat([torch.arange(ROWS)[chunk.columns] for chunk in everything]).tolist() == list(range(ROWS))


def test_the_next_chunk_comes_while_one_is_computed(close):
    """Each chunk but the last is computed only once the next is there: one after the other they would wait for ever."""
    filled = [threading.Event() for _ in range(5)]

    class Telling(Slot):
        def fill(self, chunk):
            super().fill(chunk)
            filled[chunk.rows.start // ROOM].set()

    class Waiting(Unit):
        asked = 0

        def sparse_ffn(self, *arguments, **options):
            self.asked += 1
            assert self.asked == len(filled) or filled[self.asked].wait(30), "the next chunk never came"
            return super().sparse_ffn(*arguments, **options)

    cold = make_bank(20, ROWS)
    gpu, x = second_unit(kind=Waiting), torch.randn(20, HIDDEN)
    stream = RowStream(gpu, cold, ROOM, always)
    close(stream)
    stream.slots = [Telling(gpu, cold, ROOM) for _ in stream.slots]
    scheduler = Scheduler([SplitLayer(gpu, host_unit(1), [], [cold], None, None)], "exact", True, None)
    scheduler.stream = stream
    y = scheduler.feed_forward(0, x, x)
    torch.testing.assert_close(y, host_unit(1).sparse_ffn(cold, x, None, True)[0], rtol=1e-4, atol=1e-4)
    assert gpu.asked == 5


@pytest.mark.parametrize("failing", ["bringing", "computing the resident rows", "computing what was brought"])
def test_a_failure_is_raised_and_the_next_step_works(close, failing):
    class Failing(Unit):
        left = {"computing the resident rows": 0, "computing what was brought": 2}.get(failing, 100)

        def sparse_ffn(self, *arguments, **options):
            self.left -= 1
            if self.left < 0:
                self.left = 100
                raise ValueError("the rows could not be computed")
            return super().sparse_ffn(*arguments, **options)

    gpu, host, x = second_unit(kind=Failing), host_unit(1), torch.randn(20, HIDDEN)
    resident, cold, broken = make_bank(0, 20), make_bank(20, ROWS), make_bank(20, ROWS)
    broken.close()
    stream = RowStream(gpu, cold, ROOM, always)
    close(stream)
    scheduler = Scheduler([SplitLayer(gpu, host, [resident], [cold], None, None)], "exact", True, None)
    scheduler.stream = stream
    if failing == "bringing":
        scheduler.layers = [SplitLayer(gpu, host, [resident], [cold, broken], None, None)]
    with pytest.raises((ValueError, RuntimeError), match=r"could not be computed|was closed"):
        scheduler.feed_forward(0, x, x)
    scheduler.layers = [SplitLayer(gpu, host, [resident], [cold], None, None)]
    expected = host.sparse_ffn(make_bank(0, ROWS), x, None, True)[0]
    torch.testing.assert_close(scheduler.feed_forward(0, x, x), expected, rtol=1e-4, atol=1e-4)
