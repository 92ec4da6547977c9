"""Memory of keys and values: what is touched before texts reach it, and what never is."""

from __future__ import annotations

import mmap
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model.kv_cache import Span
from hybrid.model.pages import PAGE_TOKENS
from hybrid.runtime.first_touch import HUGE_PAGE, FirstTouch

BLOCK = 64 << 10  # bytes
BLOCKS = 512  # 32 MiB


@pytest.fixture(scope="module")
def caches() -> list[torch.Tensor]:
    def cache(blocks: int) -> torch.Tensor:
        return torch.frombuffer(mmap.mmap(-1, blocks * BLOCK), dtype=torch.float16).view(blocks, -1)

    return [*(cache(BLOCKS) for _ in range(6)), cache(8)]


def spans(blocks: list[int]) -> list[Span]:
    return [Span(array("q", blocks), (len(blocks) - 1) * PAGE_TOKENS, PAGE_TOKENS)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60))
def test_every_huge_page_is_touched_before_it_is_used_and_none_that_is(
    caches: list[torch.Tensor], growths: list[int]
) -> None:
    touched: set[int] = set()
    first = FirstTouch(caches, touched.add)
    used = 0
    for growth in growths:
        before, used = used, min(used + growth, BLOCKS)
        known = set(touched)
        first.before(spans(list(range(used))))
        for cache in caches[:-1]:
            begin = cache.data_ptr()
            new = sorted(a - begin for a in touched - known if begin <= a < begin + cache.nbytes)
            assert all(at >= used * BLOCK for at in new), "blocks in use hold something"
            assert all((begin + at) % HUGE_PAGE == 0 for at in new)
            if before:  # growing by at most 1 MiB a step
                reached = range(-(-(begin + before * BLOCK) // HUGE_PAGE) * HUGE_PAGE, begin + used * BLOCK, HUGE_PAGE)
                assert all(page in known for page in reached), "steps find their pages touched"
    small = caches[-1]
    assert not any(small.data_ptr() <= a < small.data_ptr() + small.nbytes for a in touched)


def test_layers_are_touched_one_after_the_other(caches: list[torch.Tensor]) -> None:
    touched: list[int] = []
    first = FirstTouch(caches, touched.append)
    first.before(spans([0]))
    counts = []
    for used in range(2, 256):
        before = len(touched)
        first.before(spans(list(range(used))))
        counts.append(len(touched) - before)
    assert sum(counts) >= 5 * (len(caches) - 1)
    assert max(counts) <= 2, "not those of all layers at once"


def test_what_was_taken_before_is_not_looked_at_again(caches: list[torch.Tensor]) -> None:
    touched: list[int] = []
    first = FirstTouch(caches, touched.append)
    first.before(spans(list(range(100))))
    before = len(touched)
    first.before(spans([3, 50, 7]))
    assert len(touched) == before


def test_memory_is_really_there(caches: list[torch.Tensor]) -> None:
    first = FirstTouch(caches)
    first.before(spans(list(range(40))))
    assert all(int(cache.view(torch.int16)[40:].count_nonzero()) == 0 for cache in caches[:1]), "and holds zeros"
