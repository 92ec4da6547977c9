"""On a CUDA device: rows that pass through it add what they add on the host, chunk after chunk, many times over."""

import pytest
import torch

from hybrid.ops.bank import RowBank
from hybrid.runtime.lane import ThreadLane
from hybrid.runtime.scheduler import Scheduler, SplitLayer
from hybrid.runtime.streaming import RowStream
from hybrid.runtime.unit import Unit, host_unit
from profiler.matrix import Matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

HIDDEN, ROWS, CUT, ROOM, TOKENS = 512, 3000, 700, 256, 96


@pytest.fixture
def closing():
    """Close what was opened when the test ends."""
    opened = []
    yield opened.append
    for one in opened:
        one.close()


@pytest.mark.parametrize("named_share", [None, 0.0, 0.002, 0.3])
@pytest.mark.parametrize(("weight_format", "gated"), [("f16", True), ("q4_0", True), ("bf16", False)])
def test_streamed_rows_add_what_they_add_on_the_host(closing, weight_format, gated, named_share):
    torch.manual_seed(0)
    parts = [torch.randn(ROWS, HIDDEN) / HIDDEN**0.5 for _ in range(3 if gated else 2)]
    data = torch.cat([Matrix.quantised(part, weight_format).data for part in parts], 1)
    bias = None if gated else torch.randn(ROWS)

    def bank(rows: slice, device: str) -> RowBank:
        here = None if bias is None else bias[rows].to(device)
        return RowBank(data[rows].to(device), weight_format, HIDDEN, gated, "relu", here, first_row=rows.start)

    gpu, host = Unit("gpu", torch.device("cuda"), None, in_place=False, budget=None), host_unit(2, natively=True)
    cold, lane = bank(slice(CUT, ROWS), "cpu"), ThreadLane()
    layer = SplitLayer(gpu, host, [bank(slice(0, CUT), "cuda")], [cold], None, None)
    scheduler = Scheduler([layer], "exact", True, lane)
    stream = RowStream(gpu, cold, ROOM, lambda index, tokens: True)
    for one in (stream, lane):
        closing(one)
    for _ in range(5):
        x = torch.randn(TOKENS, HIDDEN, device="cuda")
        named = None if named_share is None else torch.rand(TOKENS, ROWS, device="cuda") < named_share
        scheduler.stream = None
        computed = scheduler._computed(0, x, named)
        scheduler.stream = stream
        torch.testing.assert_close(scheduler._computed(0, x, named), computed, rtol=1e-3, atol=1e-3)
