"""Memory of keys and values is taken a little before it is used, a piece at a time.

Much room lies in huge pages (`unit.HUGE_PAGES_FROM`), which the system clears when they are first touched. A virtual
machine took 2 to 8 ms for each, and texts grow into the next one in every layer at once: that step took 110 to 340 ms
longer. So the layers' pages are touched one after the other while texts grow towards them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from hybrid.model.kv_cache import Span
from hybrid.model.pages import PAGE_TOKENS
from hybrid.runtime.unit import HUGE_PAGES_FROM

HUGE_PAGE = 2 << 20
EARLIEST, LATEST = 1.5, 0.5  # huge pages ahead of use at which the first and the last of the layers' are touched


def clear_byte(address: int) -> None:
    """Touch a place that holds zero."""
    ctypes.memset(address, 0, 1)


@dataclass
class Room:
    """Keys or values of a layer: where they lie, how far ahead of use they are touched, and the place that is next."""

    address: int
    size: int
    block_bytes: int
    lead: int
    next: int


class FirstTouch:
    """Touches huge pages of keys and values before texts reach them; memory goes to blocks in rising order.

    Args:
        caches: keys and values of all layers in host memory, `[block, ...]`; small ones are left alone.
        touch: of an address whose block nobody has used.

    """

    def __init__(self, caches: Iterable[torch.Tensor], touch: Callable[[int], None] = clear_byte) -> None:
        large = [cache for cache in caches if cache.device.type == "cpu" and cache.nbytes >= HUGE_PAGES_FROM]
        self._touch = touch
        self._used = 0  # blocks below were taken
        self._rooms = [
            Room(
                cache.data_ptr(),
                cache.nbytes,
                cache.nbytes // len(cache),
                int(HUGE_PAGE * (LATEST + (EARLIEST - LATEST) * (i + 1) / len(large))),
                -cache.data_ptr() % HUGE_PAGE,
            )
            for i, cache in enumerate(large)
        ]

    def before(self, spans: Sequence[Span]) -> None:
        """Called before a step that writes these spans."""
        if not self._rooms:
            return
        used = max(self._used, *(1 + max(span.blocks[span.first_position // PAGE_TOKENS :]) for span in spans))
        if used > self._used:
            self._used = used
            for room in self._rooms:
                self._advance(room)

    def _advance(self, room: Room) -> None:
        """Touch what lies ahead of the blocks in use, and none of these, which hold something."""
        used = self._used * room.block_bytes
        while room.next < min(used + room.lead, room.size):
            if room.next >= used:
                self._touch(room.address + room.next)
            room.next += HUGE_PAGE
