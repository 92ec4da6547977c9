"""Pages are used, shared, remembered and forgotten."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybrid.runtime.page_pool import PagePool
from profiler.artifacts import UserError


def test_pages_are_taken_once_and_come_back():
    pool = PagePool(3)
    taken = [pool.take() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2]
    assert pool.take() is None
    pool.give_back(taken[:2])
    assert (pool.used, pool.free) == (1, 2)
    with pytest.raises(KeyError):
        pool.give_back(taken[:1])


def test_many_pages_are_taken_at_once_or_none():
    pool = PagePool(3)
    assert list(pool.take_many(2)) == [0, 1]
    with pytest.raises(UserError, match="2 of 3 pages"):
        pool.take_many(2)
    assert pool.free == 1


def test_the_oldest_that_nobody_uses_is_forgotten_first_and_of_a_text_its_end():
    pool = PagePool(4)
    for text in (b"a", b"b"):
        pages = [pool.take(), pool.take()]
        for number, page in enumerate(pages):
            pool.publish(page, text + bytes([number]))
        pool.give_back(pages)
    assert pool.cached == 4
    kept = pool.share(b"a\0")
    assert pool.take() is not None
    assert pool.share(b"a\1") is None, "the end of the older text"
    assert pool.share(b"b\0") is not None
    pool.give_back([kept])
    assert [pool.take() is None for _ in range(3)] == [False, False, True]
    assert pool.cached == 0


def test_what_was_never_touched_is_taken_only_where_nothing_else_would_do():
    pool = PagePool(10, keep=2)
    for number in range(5):
        page = pool.take()
        assert page in (0, 1)
        pool.publish(page, bytes([number]))
        pool.give_back([page])
    assert sorted(pool.take() for _ in range(10)) == list(range(10))


def test_what_is_forgotten_is_shared_no_more():
    pool = PagePool(3)
    used, idle = pool.take(), pool.take()
    pool.publish(used, b"used")
    pool.publish(idle, b"idle")
    pool.give_back([idle])
    pool.forget()
    assert pool.share(b"used") is None
    assert pool.share(b"idle") is None
    assert (pool.used, pool.cached) == (1, 0)
    pool.give_back([used])
    assert sorted([pool.take(), pool.take(), pool.take()]) == [0, 1, 2]


class Pool(RuleBasedStateMachine):
    """Against a model that knows of each page its users and what it holds."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(6, keep=4)
        self.held = []  # pages by user
        self.contents = {}

    @rule()
    def take(self):
        free = self.pool.free
        page = self.pool.take()
        assert (page is None) == (free == 0)
        if page is not None:
            assert page not in self.held
            self.contents = {d: p for d, p in self.contents.items() if p != page}
            self.held.append(page)

    @rule(digest=st.binary(min_size=1, max_size=1).map(lambda b: bytes([b[0] % 8])))
    def share(self, digest):
        page = self.pool.share(digest)
        assert page == self.contents.get(digest)
        if page is not None:
            self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), digest=st.integers(0, 7).map(lambda n: bytes([n])))
    def publish(self, data, digest):
        page = data.draw(st.sampled_from(self.held))
        self.pool.publish(page, digest)
        if digest not in self.contents and page not in self.contents.values():
            self.contents[digest] = page

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data):
        page = data.draw(st.sampled_from(self.held))
        self.held.remove(page)
        self.pool.give_back([page])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data):
        page = data.draw(st.sampled_from(self.held))
        self.pool.forget([page])
        self.contents = {d: p for d, p in self.contents.items() if p != page}

    @invariant()
    def counts(self):
        assert self.pool.used == len(set(self.held))
        assert self.pool.cached == len(set(self.contents.values()) - set(self.held))
        assert self.pool.used + self.pool.free == 6


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase
