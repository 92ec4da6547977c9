"""Has room for keys and values touched before it is needed, a little in every step.

Room in host memory is given by the kernel when it is first written, in huge pages, each of which is cleared then. All
layers come to the end of theirs with the same token: that one waited for 200 ms where a token took 40 (44 huge pages of
a 1B model, in a virtual machine).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from hybrid.model.kv_cache import LayerPages
from hybrid.model.pages import PAGE_TOKENS
from hybrid.runtime.page_pool import PagePool
from hybrid.runtime.unit import HUGE_PAGES_FROM

HUGE_PAGE = 2 << 20
AHEAD = 2  # huge pages of each tensor that are touched before they are needed
FASTER = 1.5  # times as fast as tokens fill them


class FreshPages:
    """The pages of a pool that were never used, in the layers whose keys and values are in host memory."""

    def __init__(self, pool: PagePool, layers: Sequence[LayerPages]) -> None:
        tensors = [tensor for pages in layers for tensor in (pages.keys, pages.values)]
        self._flat = [t.view(-1) for t in tensors if t.device.type == "cpu" and t.nbytes >= HUGE_PAGES_FROM]
        self._pool = pool
        page_bytes = self._flat[0].nbytes // pool.total if self._flat else HUGE_PAGE
        self._piece = max(1, HUGE_PAGE // page_bytes)  # pages that are touched together in one tensor
        self._first = 0  # page of the piece that is touched next
        self._next = 0  # tensor in which it is
        self._credit = 0.0

    def step(self, tokens: int) -> None:
        """Touch some for what so many tokens fill."""
        if not self._flat or self._first >= self._pool.total:
            return
        self._credit += FASTER * tokens * len(self._flat) / (self._piece * PAGE_TOKENS)
        while self._credit >= 1:
            used = self._pool.touched
            if self._first < used:  # it was touched by who uses it
                self._first, self._next = -(-used // self._piece) * self._piece, 0
            if self._first >= min(used + AHEAD * self._piece, self._pool.total):
                self._credit = 0.0
                return
            self._credit -= 1
            self._touch()

    def _touch(self) -> None:
        flat = self._flat[self._next]
        each = len(flat) // self._pool.total
        end = min(self._first + self._piece, self._pool.total)
        flat[self._first * each : end * each : mmap.PAGESIZE // flat.element_size()].zero_()  # what it holds anyway
        self._next += 1
        if self._next == len(self._flat):
            self._first, self._next = end, 0
