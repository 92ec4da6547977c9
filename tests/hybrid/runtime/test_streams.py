"""The streams of a device in host memory: the order of what goes to each, failures of either, and times."""

import os
from pathlib import Path

import pytest
import torch

from hybrid.ops import cpu
from hybrid.runtime.activity import Overlap
from hybrid.runtime.pieces import Pieces
from hybrid.runtime.streams import HostStreams
from hybrid.runtime.timed_streams import TimedStreams
from hybrid.runtime.timing import StepTimes
from hybrid.runtime.unit import Unit
from profiler.matrix import Matrix

WIDTH = 64


class Host:
    """A product of the host: of `x` by a matrix into `y`, perhaps several times over."""

    def __init__(self, pool=None, times=1):
        self.x, self.y = torch.zeros(cpu.MAX_TOKENS, WIDTH), torch.zeros(cpu.MAX_TOKENS, WIDTH)
        self.weight = Matrix.of(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)).half())
        self.program, self.pool = cpu.Program(), pool or cpu.Pool(1)
        for _ in range(times):
            self.program.linear(self.pool, self.x.data_ptr(), WIDTH, [cpu.matrix_arguments(self.weight, None, self.y)])
        self.tokens, zeros = torch.tensor([1]), torch.zeros(cpu.MAX_TOKENS, dtype=torch.int64)
        self.kept = zeros
        self.step = cpu.HostStep(self.tokens.data_ptr(), *(zeros.data_ptr(),) * 3)
        self.function = cpu.HostFunction(self.step, self.program)


@pytest.fixture
def broken():
    """A pool whose operators fail: the process has no such core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads are not kept on cores here")
    return cpu.Pool(1, 1.0, [1023])


def split(pieces, host, source, result, near):
    """A layer on both units: what the host makes of `source` is in `result` once it is joined."""
    pieces.fork()
    with pieces.aside():
        pieces.on_device("copy", lambda tokens: host.x.copy_(source))
        pieces.on_host("feed-forward", host.function, host.program)
        pieces.on_device("copy", lambda tokens: result.copy_(host.y))
    pieces.on_device("feed-forward", near)
    pieces.join()


@pytest.mark.parametrize("overlap", [True, False])
def test_what_comes_after_a_program_waits_for_it_and_a_join_for_all_of_it(overlap):
    host, pieces = Host(), Pieces()
    source, result = torch.zeros(cpu.MAX_TOKENS, WIDTH), torch.zeros(cpu.MAX_TOKENS, WIDTH)
    sums, streams = [], HostStreams(overlap)
    for layer in range(3):
        pieces.layer = layer
        pieces.on_device("sums", lambda tokens, layer=layer: source.fill_(layer + 1))
        split(pieces, host, source, result, lambda tokens: None)
        pieces.on_device("sums", lambda tokens: sums.append(result[0].clone()))
    taken = pieces.take()
    assert [(piece.layer, piece.unit, piece.kind) for piece in taken[:7]] == [
        (0, "gpu", "sums"),
        (0, "gpu", "fork"),
        (0, "cpu", "copy"),
        (0, "cpu", "feed-forward"),
        (0, "cpu", "copy"),
        (0, "gpu", "feed-forward"),
        (0, "gpu", "join"),
    ]
    assert pieces.take() == []
    for _ in range(2):
        streams.run("layers", lambda: [piece.issue(streams, 1) for piece in taken])
    once = cpu.linear(cpu.Pool(1), torch.ones(1, WIDTH), host.weight)[0]
    assert all(torch.allclose(found, factor * once) for found, factor in zip(sums, (1, 2, 3) * 2, strict=True))
    assert streams.close()


def test_both_sides_compute_at_the_same_time():
    """The host's side lingers after each of its operators; this side comes before the end of that."""
    times = 100
    host, pieces, seen = Host(cpu.Pool(1, cpu.MAX_SLOWDOWN), times), Pieces(), []
    result = torch.zeros(cpu.MAX_TOKENS, WIDTH)
    split(pieces, host, torch.ones_like(host.x), result, lambda tokens: seen.append(host.pool.waits))
    streams, taken = HostStreams(), pieces.take()
    streams.run("layer", lambda: [piece.issue(streams, 1) for piece in taken])
    assert seen[0] < times
    assert host.pool.waits == times
    assert result.any()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failure_of_the_device_leaves_the_lane_free(overlap):
    host, pieces, result = Host(), Pieces(), torch.zeros(cpu.MAX_TOKENS, WIDTH)
    failing = [True, False, True, False]

    def near(tokens):
        if failing.pop(0):
            raise ValueError("the rows could not be computed")

    split(pieces, host, torch.ones_like(host.x), result, near)
    taken, streams = pieces.take(), HostStreams(overlap)
    for _ in range(2):
        with pytest.raises(ValueError, match="could not be computed"):
            streams.run("layer", lambda: [piece.issue(streams, 1) for piece in taken])
        result.zero_()
        streams.run("layer", lambda: [piece.issue(streams, 1) for piece in taken])
        assert result.any()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failure_of_the_host_completes_the_join(overlap, broken):
    host, pieces, result = Host(broken), Pieces(), torch.zeros(cpu.MAX_TOKENS, WIDTH)
    split(pieces, host, torch.ones_like(host.x), result, lambda tokens: None)
    taken, streams = pieces.take(), HostStreams(overlap)
    streams.run("layer", lambda: [piece.issue(streams, 1) for piece in taken])
    with pytest.raises(RuntimeError, match="cannot run on the cores"):
        host.step.take_failure()
    assert not result.any()


def test_the_lane_ends_with_the_streams():
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("the system does not list threads")
    before = len(list(tasks.iterdir()))
    streams = HostStreams()
    assert len(list(tasks.iterdir())) == before + 1
    assert streams.close()
    assert len(list(tasks.iterdir())) == before


class Spans(list):
    """Spans as a trace is told of them."""

    def add(self, unit, layer, kind, begin, end):
        self.append((unit, layer, kind, begin, end))


@pytest.mark.parametrize("overlap", [True, False])
def test_pieces_are_timed_by_layer_and_kind(overlap):
    host, pieces, times, spans = Host(), Pieces(), StepTimes(), Spans()
    unit = Unit("gpu", torch.device("cpu"), None, in_place=False, budget=None)
    streams = TimedStreams(HostStreams(overlap), times, unit)
    pieces.layer = 7
    split(pieces, host, torch.ones_like(host.x), torch.zeros_like(host.y), lambda tokens: sum(range(10000)))

    def issue():
        for piece in taken:
            streams.piece = piece
            piece.issue(streams, 1)

    taken = pieces.take()
    streams.run("layer", issue)
    times.settle(Overlap(), spans)
    assert sorted(span[:3] for span in spans) == [("cpu", 7, "copy")] * 2 + [("gpu", 7, "feed-forward")]
    (near,) = (span for span in spans if span[2] == "feed-forward")
    (((began, done), joined),) = streams.together()
    assert began <= near[3] < near[4] <= done <= joined
    there, back = host.function.span
    assert there < back <= joined
    assert overlap or back <= began
