"""Pages of the KV cache as numbers: who uses them, and what is known of those that nobody uses. No torch.

A full page whose tokens are computed has a digest, of its tokens and of the digest before it: who begins with the same
tokens shares it. What nobody uses any more stays until its room is wanted, least recently used first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from profiler.artifacts import UserError


class PagePool:
    """So many pages, numbered from 0.

    keep: up to so many pages are in use or remembered before one that was never used is taken rather than the oldest
    that is only remembered; None is all. Memory that was never touched takes none of the machine's.
    """

    def __init__(self, pages: int, keep: int | None = None) -> None:
        self.total = pages
        self._keep = pages if keep is None else min(keep, pages)
        self.touched = 0  # pages below were taken before, the others never
        self._empty: list[int] = []  # of those, what holds nothing
        self._users: dict[int, int] = {}  # by page in use
        self._digests: dict[int, bytes] = {}  # by page whose content is known
        self._known: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known pages without users, longest unused first

    @property
    def used(self) -> int:
        """Pages that somebody uses."""
        return len(self._users)

    @property
    def cached(self) -> int:
        """Pages that nobody uses, and whose content is known."""
        return len(self._idle)

    @property
    def free(self) -> int:
        """Pages that can be taken: those that nobody uses."""
        return self.total - len(self._users)

    def take(self) -> int | None:
        """A page for one user, whatever it holds; None where all are in use."""
        if self._empty:
            page = self._empty.pop()
        elif self.touched < self._keep or (not self._idle and self.touched < self.total):
            page = self.touched
            self.touched += 1
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._known[self._digests.pop(page)]
        else:
            return None
        self._users[page] = 1
        return page

    def take_many(self, count: int) -> array[int]:
        """So many pages for one user, int64.

        Raises:
            UserError: fewer are left.
        """
        pages = array("q", (page for _ in range(min(count, self.free)) if (page := self.take()) is not None))
        if len(pages) < count:
            self.give_back(pages)
            raise UserError(
                f"{self.used} of {self.total} pages of the KV cache are in use; wait until a request is done"
            )
        return pages

    def share(self, digest: bytes) -> int | None:
        """The page of this content, for one more user; None where it is not known."""
        page = self._known.get(digest)
        if page is not None:
            self._idle.pop(page, None)
            self._users[page] = self._users.get(page, 0) + 1
        return page

    def in_use(self, digest: bytes) -> bool:
        """Whether somebody uses a page of this content."""
        return self._known.get(digest) in self._users

    def publish(self, page: int, digest: bytes) -> None:
        """Say what a page in use holds from now on, which nobody writes to any more; of equal ones the first counts."""
        assert page in self._users, "a page is written by who uses it"
        if digest not in self._known and page not in self._digests:
            self._known[digest] = page
            self._digests[page] = digest

    def give_back(self, pages: Sequence[int]) -> None:
        """One user of each of a text's pages is gone. Its last pages are the first to be forgotten."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._digests:
                self._idle[page] = None
            else:
                self._empty.append(page)

    def forget(self, pages: Sequence[int] | None = None) -> None:
        """Share these pages, or None: any, no more."""
        for page in list(self._digests) if pages is None else pages:
            digest = self._digests.pop(page, None)
            if digest is not None:
                del self._known[digest]
            if page in self._idle:
                del self._idle[page]
                self._empty.append(page)
