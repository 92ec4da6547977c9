"""Pages hold what was written, through any block table."""

from array import array

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model.kv_cache import KV_DTYPES, LayerPages, Span
from hybrid.model.pages import KV_FORMATS, PAGE_TOKENS, pages_for


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    width=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_reading_gives_back_what_was_written_in_pieces(pieces, heads, width, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(pieces)
    blocks = pages_for(total)
    shape = (blocks + 3, heads, PAGE_TOKENS, width)
    pages = LayerPages(torch.full(shape, torch.nan), torch.full(shape, torch.nan))
    table = array("q", torch.randperm(blocks + 3, generator=generator)[:blocks].tolist())
    keys = torch.randn(total, heads, width, generator=generator)
    values = torch.randn(total, heads, width, generator=generator)
    at = 0
    for count in pieces:
        span = Span(table, at, count)
        pages.write(span, keys[at : at + count], values[at : at + count])
        at += count
        read_keys, read_values = pages.read(span)
        assert torch.equal(read_keys, keys[:at])
        assert torch.equal(read_values, values[:at])


def test_two_sequences_do_not_meet():
    pages = LayerPages(torch.zeros(4, 1, PAGE_TOKENS, 2), torch.zeros(4, 1, PAGE_TOKENS, 2))
    one, two = Span(array("q", [2, 0]), 0, 20), Span(array("q", [1, 3]), 0, 20)
    pages.write(one, torch.ones(20, 1, 2), torch.ones(20, 1, 2))
    pages.write(two, torch.full((20, 1, 2), 2.0), torch.full((20, 1, 2), 2.0))
    assert pages.read(one)[0].unique().tolist() == [1.0]
    assert pages.read(two)[0].unique().tolist() == [2.0]


def test_formats_have_the_bytes_that_are_counted():
    assert {name: dtype.itemsize for name, dtype in KV_DTYPES.items()} == KV_FORMATS
