"""Room for keys and values is touched before it is used, and never where somebody has written."""

import pytest
import torch

from hybrid.model.kv_cache import LayerPages
from hybrid.runtime import fresh_pages
from hybrid.runtime.fresh_pages import FreshPages
from hybrid.runtime.page_pool import PagePool

PAGES = 40


@pytest.fixture
def layers(monkeypatch):
    """Three layers of pages of 4 KiB, of which a piece has 8; ones, so that what is touched shows."""
    monkeypatch.setattr(fresh_pages, "HUGE_PAGE", 8 << 12)
    monkeypatch.setattr(fresh_pages, "HUGE_PAGES_FROM", 1)
    return [LayerPages(*(torch.ones(PAGES, 2, 16, 32) for _ in range(2))) for _ in range(3)]


def touched(layers):
    """Of every tensor the pages that were touched."""
    return [
        set((t.view(PAGES, -1) == 0).any(1).nonzero().view(-1).tolist()) for x in layers for t in (x.keys, x.values)
    ]


def test_pages_are_touched_ahead_of_those_that_are_used_and_no_used_one_is(layers):
    pool = PagePool(PAGES)
    fresh, late = FreshPages(pool, layers), 0
    while (page := pool.take()) is not None:
        found = touched(layers)
        late += any(page not in pages for pages in found)
        before = [pages & set(range(page + 1)) for pages in found]
        for _ in range(16):
            fresh.step(1)
            now = touched(layers)
            assert [pages & set(range(page + 1)) for pages in now] == before, "what is used is not written"
            assert all(p < page + 1 + 2 * 8 + 8 for pages in now for p in pages), "nor much more than is needed"
    assert late == 8, "but for the first piece, of which nobody knew"


def test_what_is_small_or_not_in_host_memory_is_left_alone(layers, monkeypatch):
    monkeypatch.setattr(fresh_pages, "HUGE_PAGES_FROM", 1 << 30)
    FreshPages(PagePool(PAGES), layers).step(1000)
    assert touched(layers) == [set()] * 6


def test_many_tokens_at_once_touch_no_more_than_is_wanted_ahead(layers):
    pool = PagePool(PAGES)
    fresh = FreshPages(pool, layers)
    fresh.step(1000)
    assert touched(layers) == [set(range(16))] * 6
    fresh.step(1000)
    assert touched(layers) == [set(range(16))] * 6
