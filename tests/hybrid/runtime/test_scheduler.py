"""The scheduler on a layer of its own: both sides at once, the sum of both, and failures of either side."""

import threading

import pytest
import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.unit import Unit, host_unit, stand_in_unit
from profiler.artifacts import UserError
from profiler.matrix import Matrix

HIDDEN, ROWS = 24, 40


class Waiting(Unit):
    """A host unit that computes only once an event is set, and tells when it was asked to."""

    def __init__(self, asked, allowed):
        super().__init__("cpu", torch.device("cpu"), cpu.Pool(1), in_place=True, budget=None)
        self.asked, self.allowed = asked, allowed

    def sparse_ffn(self, *arguments, **options):
        self.asked.set()
        assert self.allowed.wait(30), "the other side never got that far"
        return super().sparse_ffn(*arguments, **options)


class Failing(Unit):
    """A host unit whose operator raises."""

    def __init__(self):
        super().__init__("cpu", torch.device("cpu"), cpu.Pool(1), in_place=True, budget=None)

    def sparse_ffn(self, *arguments, **options):
        raise ValueError("the rows could not be computed")


@pytest.fixture
def lane():
    lane = ThreadLane()
    yield lane
    lane.close()


def rows(seed=0):
    return torch.randn(ROWS, 3 * HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16()


def bank(start, stop):
    return RowBank(rows()[start:stop], "bf16", HIDDEN, True, "relu", first_row=start)


def split(near, far, cut=16):
    return SplitLayer(near, far, [bank(0, cut)], [bank(cut, ROWS)], None, None)


def expected(x):
    unit = host_unit(1)
    return unit.sparse_ffn(bank(0, ROWS), x, None, True)[0]


def test_each_side_starts_before_the_other_has_to_be_done(lane):
    far_asked, near_asked = threading.Event(), threading.Event()
    # Each side computes only once the other was asked to: in turn they would wait for ever.
    near, far = Waiting(near_asked, far_asked), Waiting(far_asked, near_asked)
    scheduler = Scheduler([split(near, far)], "exact", True, lane)
    x = torch.randn(2, HIDDEN)
    torch.testing.assert_close(scheduler.feed_forward(0, x, x), expected(x), rtol=1e-4, atol=1e-4)


def test_a_failure_on_the_other_unit_is_raised_and_the_next_token_works(lane):
    scheduler = Scheduler([split(host_unit(1), Failing())], "exact", True, lane)
    x = torch.randn(1, HIDDEN)
    with pytest.raises(ValueError, match="could not be computed"):
        scheduler.feed_forward(0, x, x)
    scheduler.layers = [split(host_unit(1), host_unit(1))]
    torch.testing.assert_close(scheduler.feed_forward(0, x, x), expected(x), rtol=1e-4, atol=1e-4)


def test_a_failure_on_this_unit_leaves_the_lane_free(lane):
    scheduler = Scheduler([split(Failing(), host_unit(1))], "exact", True, lane)
    x = torch.randn(1, HIDDEN)
    with pytest.raises(ValueError, match="could not be computed"):
        scheduler.feed_forward(0, x, x)
    scheduler.layers = [split(host_unit(1), host_unit(1))]
    torch.testing.assert_close(scheduler.feed_forward(0, x, x), expected(x), rtol=1e-4, atol=1e-4)


def test_a_stand_in_copies_and_keeps_its_budget():
    unit, weights = stand_in_unit(1, 1000), torch.zeros(100, dtype=torch.bfloat16)
    copy = unit.place(weights, "neurons")
    assert copy.data_ptr() != weights.data_ptr()
    assert unit.used == {"neurons": 200}
    with pytest.raises(UserError, match=r"200 B are missing on the gpu for kv.*--vram"):
        unit.empty((250,), torch.float32, "kv")


def test_the_host_uses_memory_in_place():
    unit, weights = host_unit(1), torch.zeros(100, dtype=torch.bfloat16)
    assert unit.place(weights, "neurons").data_ptr() == weights.data_ptr()


@pytest.mark.parametrize("named", [False, True])
def test_a_host_that_computes_natively_takes_sixteen_tokens_at_a_time(named):
    unit, whole, x = host_unit(2, natively=True), bank(0, ROWS), torch.randn(41, HIDDEN)
    marked = torch.rand(41, ROWS) < 0.3 if named else None
    found, counts = unit.sparse_ffn(whole, x, marked, True)
    assert counts.gated == (41 * ROWS if marked is None else int(marked.sum()))
    for at in range(0, 41, 16):
        here = slice(at, at + 16)
        part, _ = unit.sparse_ffn(whole, x[here], None if marked is None else marked[here], True)
        assert torch.equal(found[here], part)
    torch.testing.assert_close(found, host_unit(1).sparse_ffn(whole, x, marked, True)[0], rtol=1e-4, atol=1e-4)
    weight = Matrix.of(rows()[:, :HIDDEN])
    products = unit.linear(x, weight, None)
    assert torch.equal(products[16:32], unit.linear(x[16:32], weight, None))
    torch.testing.assert_close(products, x @ weight.data.float().T, rtol=1e-4, atol=1e-4)
