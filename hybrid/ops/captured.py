"""Calls of operators issued together, and the seconds that they take: on a GPU as one CUDA graph.

A graph is what decoding is made of there: the host launches it once, so that no operator waits to be launched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROUNDS = 5
Call = Callable[[], object]


class Captured:
    """Calls that allocate nothing and wait for nothing, in their order. Each is made once before it is captured.

    On the CPU they are made one after the other.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self._calls, self._device, self._graph = list(calls), device, None
        if device.type != "cuda":
            self._make()
            return
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            self._make()
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._make()

    def __call__(self) -> None:
        """Have everything done once more; on a GPU later than this returns."""
        if self._graph is None:
            self._make()
        else:
            self._graph.replay()

    def complete(self) -> None:
        """As a call, and wait until it is done."""
        self()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def seconds(self, least: float) -> float:
        """Seconds of one pass, the median of some rounds that take `least` seconds or more together."""
        self.complete()
        once = self._timed(1)
        passes = max(1, round(least / ROUNDS / max(once, 1e-9)))
        return statistics.median(self._timed(passes) / passes for _ in range(ROUNDS))

    def _make(self) -> None:
        for call in self._calls:
            call()

    def _timed(self, passes: int) -> float:
        """Seconds of so many passes, by the clock of the device."""
        if self._device.type != "cuda":
            began = time.perf_counter()
            for _ in range(passes):
                self()
            return time.perf_counter() - began
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(passes):
            self()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
