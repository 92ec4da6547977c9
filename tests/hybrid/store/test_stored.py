"""Files of the store in memory: what is kept, what is read past a mapping, and what is given back."""

import mmap
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.store.layout import ALIGNMENT, lay_out
from hybrid.store.stored import HeldFile, MappedFile, whole_pages
from profiler.artifacts import UserError

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE + 100
FOLIO = 2 << 20  # bytes that the kernel may keep together in the page cache
parts = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda ends: range(min(ends), max(ends)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of two tensors that fills many pages: its path, layout and content."""
    path = tmp_path_factory.mktemp("stored").resolve() / "file"
    layout = lay_out([("small", "U8", (100,)), ("large", "U8", (SIZE,))], "test")
    content = bytearray(random.Random(0).randbytes(layout.size))
    content[: len(layout.header)] = layout.header
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path, layout, torch.frombuffer(content, dtype=torch.uint8)


def mapped_bytes(path):
    """Bytes of a file's mappings that this process has in its page tables."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@settings(deadline=None, max_examples=60)
@given(kept=st.lists(parts, max_size=8), read=parts)
def test_a_held_file_has_what_was_kept_and_nothing_else(stored, kept, read) -> None:
    path, layout, content = stored
    file, asked = HeldFile(path, layout), torch.zeros(layout.size, dtype=torch.bool)
    for part in kept:
        file.keep(part.start, len(part))
        asked[part.start : part.stop] = True
        assert all(before.stop + ALIGNMENT < after.start for before, after in pairwise(file._kept)), "apart, in order"
        there = torch.zeros_like(asked)
        for one in file._kept:
            there[one.start : one.stop] = True
        assert not (asked & ~there).any()
        assert int((there & ~asked).sum()) <= ALIGNMENT * len(kept), "what is between two parts is only padding"
        expected = content * there
        into = torch.empty(len(read), dtype=torch.uint8)
        file.read(read.start, into)
        assert torch.equal(into, content[read.start : read.stop]), "kept or not, and without keeping it"
        assert torch.equal(file._bytes, expected)


@settings(deadline=None, max_examples=30)
@given(kept=st.lists(parts, min_size=1, max_size=8))
def test_no_byte_of_a_held_file_is_read_twice(stored, kept) -> None:
    path, layout, _ = stored
    file = HeldFile(path, layout)
    for part in kept:
        file.keep(part.start, len(part))
    before = sum(map(len, file._kept))
    os.close(file._descriptor)  # whoever reads now, fails
    try:
        for part in kept:
            file.keep(part.start, len(part))
            file.read(part.start, torch.empty(len(part), dtype=torch.uint8))
    finally:
        with path.open("rb") as again:
            os.dup2(again.fileno(), file._descriptor)
    assert sum(map(len, file._kept)) == before


@pytest.mark.parametrize("kind", [HeldFile, MappedFile])
def test_tensors_know_where_they_come_from(stored, kind):
    path, layout, content = stored
    file = kind(path, layout)
    large = file.tensor("large", keep=False)
    entry = layout.entry("large")
    origin = file.origin(large[5:905])
    assert (origin.offset, origin.length) == (entry.offset + 5, 900)
    into = torch.empty(300, dtype=torch.uint8)
    origin.read(100, into)
    assert torch.equal(into, content[entry.offset + 105 :][:300])
    origin.keep()
    assert torch.equal(large[5:905], content[entry.offset + 5 :][:900])
    with pytest.raises(AssertionError):
        file.origin(torch.zeros(3))
    with pytest.raises(AssertionError):
        file.origin(large[::2])


def test_what_cannot_be_read_is_an_error(stored, tmp_path):
    _, layout, content = stored
    path = tmp_path / "cut"
    path.write_bytes(content.numpy().tobytes())
    held, mapped = HeldFile(path, layout), MappedFile(path, layout)
    os.truncate(path, layout.size - 1)
    for file in (held, mapped):
        with pytest.raises(UserError, match=r"cut ended before its time"):
            file.read(0, torch.empty(layout.size, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"cut ended before its time"):
        held.tensor("large")


def test_what_is_forgotten_leaves_the_process_and_the_page_cache(tmp_path, in_page_cache):
    path, size = tmp_path.resolve() / "file", 16 << 20
    layout = lay_out([("all", "U8", (size,))], "test")
    content = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path.write_bytes(layout.header + content.numpy().tobytes())
    with path.open("rb") as written:
        os.fsync(written.fileno())
    file = MappedFile(path, layout)
    assert torch.equal(file.tensor("all"), content)
    assert all(in_page_cache(file.address, layout.size))
    before, part = mapped_bytes(path), range((4 << 20) + 10, (12 << 20) + 10)
    assert before >= size
    middle = (part.start + part.stop) // 2
    for some in (range(part.start, middle - 60), range(middle, part.stop)):  # nothing but padding between them
        file.forget(some.start, len(some))
    pages = whole_pages(part.start, len(part))
    assert pages == range((4 << 20) + PAGE, 12 << 20)
    assert len(pages) <= before - mapped_bytes(path) <= len(pages) + 2 * FOLIO
    dropped = [PAGE * i for i, there in enumerate(in_page_cache(file.address, layout.size)) if not there]
    assert set(dropped) <= set(pages), "what belongs to others stays"
    assert set(dropped) >= set(range(pages.start + FOLIO, pages.stop - FOLIO, PAGE))
    file.forget(PAGE + 1, PAGE)
    assert in_page_cache(file.address + PAGE, 2 * PAGE) == [True, True], "no page is whole"
    assert torch.equal(file.tensor("all"), content), "it is read again where it is touched"


def test_reading_past_a_mapping_touches_none_of_its_pages(stored):
    path, layout, content = stored
    file, into = MappedFile(path, layout), torch.empty(layout.size, dtype=torch.uint8)
    before = mapped_bytes(path)
    file.read(0, into)
    assert torch.equal(into, content)
    assert mapped_bytes(path) == before


def test_pages_that_another_has_mapped_stay(stored, in_page_cache):
    path, layout, _ = stored
    file, other, pages = MappedFile(path, layout), MappedFile(path, layout), layout.size // PAGE * PAGE
    assert file.tensor("large").sum() == other.tensor("large").sum()
    file.forget(0, layout.size)
    assert all(in_page_cache(other.address, pages))
    other.forget(0, layout.size)
    assert not all(in_page_cache(other.address, pages))


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages")
def test_what_parts_were_given_back_of_is_not_brought_back_with_its_neighbours(stored) -> None:
    path, layout, content = stored

    def large():
        mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
        return [" hg" in after.splitlines()[0] for before, after in pairwise(mappings) if str(path) in before]

    whole, given_back = MappedFile(path, layout), MappedFile(path, layout)
    given_back.forget(0, SIZE // 2)
    for file in (whole, given_back):
        file.gather()
        assert torch.equal(file.tensor("large"), content[layout.entry("large").offset : layout.entry("large").end])
    assert sorted(large()) == [False, True]
