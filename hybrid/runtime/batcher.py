"""Which tokens are computed in a step: requests join and leave at token boundaries. Numbers only, no torch.

Requests are admitted in the order in which they came, and are in that order from then on: none overtakes another.
Every step takes one token of each that decodes, and as many prompt tokens of the others, oldest first, as the pace
allows: one at least, with the last pass of those that decode and, where that is full, in passes of their own. Where no
page is left the youngest gives up its pages and waits to be admitted again; the pool holds the longest text, so that
the oldest always goes on, and so each comes to be the oldest. (Continuous batching: Orca, Yu et al., 2022; paged
caches, and preemption by recomputing: vLLM, Kwon et al., 2023; prompts in pieces beside decoding: Sarathi, Agrawal et
al., 2023.)
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from hybrid.model.pages import PAGE_TOKENS, pages_for
from hybrid.runtime.pace import NOTHING, PassCosts, Work
from hybrid.runtime.page_pool import PagePool
from hybrid.runtime.paged_tokens import PagedTokens

R = TypeVar("R", bound=PagedTokens)


@dataclass(frozen=True)
class Part(Generic[R]):
    """Tokens of one request that are computed together: `count` from position `first` on.

    decodes: it is the token sampled last. is_last: a token is sampled once this is computed.
    """

    request: R
    first: int
    count: int
    decodes: bool
    is_last: bool


@dataclass(frozen=True)
class StepPlan(Generic[R]):
    """What a step computes: passes through the model, one after the other, of the parts of each.

    long: a piece of a prompt that is too long for them, which has a pass of its own and may take several steps; of it
    as much as takes so many seconds, None: all of it.
    """

    passes: list[list[Part[R]]]
    long: Part[R] | None = None
    seconds: float | None = None


class Batcher(Generic[R]):
    """The requests that wait and those that run, and the pages of each.

    Args:
        pool: of as many pages as the longest text has, or more.
        slots: requests that run at once.
        pass_tokens: that a pass takes of any requests.
        prompt_tokens: of one prompt in one step; where they are more than `pass_tokens`, in a pass of their own.
        pace: while others decode, a step takes about so many times as long with prompt tokens as without.
        reuse: pages that were computed before are shared.
    """

    def __init__(
        self,
        pool: PagePool,
        slots: int,
        pass_tokens: int,
        prompt_tokens: int,
        pace: float = 2.0,
        reuse: bool = True,
    ) -> None:
        self.pool, self.slots = pool, slots
        self.pace, self.costs = pace, PassCosts()  # which hear of passes, but for long ones
        self.pass_tokens, self.prompt_tokens = pass_tokens, prompt_tokens
        self.reuse = reuse
        self.waiting: deque[R] = deque()
        self.running: list[R] = []
        self.preemptions = self.prompt_tokens_seen = self.prompt_tokens_cached = 0  # sums
        self._long: Part[R] | None = None

    def add(self, request: R) -> None:
        """Take a request in."""
        self.waiting.append(request)
        self.prompt_tokens_seen += len(request.prompt_ids)

    def remove(self, request: R) -> None:
        """A request is over, wherever it is; its pages are free, and what they hold is remembered."""
        if request in self.running:
            self._stop(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def plan(self) -> StepPlan[R]:
        """What to compute next; nothing where no request is left. What was not done is planned again."""
        self._admit()
        planned: list[Part[R]] = []
        for request in [r for r in self.running if r.decoding]:
            if request in self.running and self._room(request, len(request), planned) == len(request):
                planned.append(Part(request, request.computed, 1, decodes=True, is_last=True))
        passes = [planned[at : at + self.pass_tokens] for at in range(0, len(planned), self.pass_tokens)]
        decoding = [work_of(parts) for parts in passes]
        if self._long is None:
            self._add_prompts(passes, planned)
        if self._long is None:
            return StepPlan(passes)
        seconds = (self.pace - 1) * sum(map(self.costs.seconds, decoding)) if decoding else None
        return StepPlan(passes, self._long, seconds)

    def done(self, part: Part[R]) -> None:
        """A part is computed: its tokens are in the pages, and pages that are full with it may be shared."""
        request, end = part.request, part.first + part.count
        request.computed = end
        if part is self._long:
            self._long = None
        for page in range(part.first // PAGE_TOKENS, end // PAGE_TOKENS) if self.reuse else ():
            self.pool.publish(request.blocks[page], request.digest(page))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting[0]
            if not self._fits(request):
                return
            self.running.append(self.waiting.popleft())
            self._share(request)

    def _fits(self, request: R) -> bool:
        """Whether there are pages for all that is known of a request, beside what those that run still need: what they
        know of, and a page more for each, so that what is admitted is not given up at once.
        """
        promised = sum(max(0, pages_for(len(r)) - len(r.blocks)) + 1 for r in self.running)
        sharable = range((len(request) - 1) // PAGE_TOKENS if self.reuse else 0)
        shared = next((page for page in sharable if not self.pool.in_use(request.digest(page))), len(sharable))
        return promised + pages_for(len(request)) - shared <= self.pool.free

    def _share(self, request: R) -> None:
        """Take over pages that somebody computed, up to the last token, whose logits are wanted."""
        while self.reuse and len(request.blocks) * PAGE_TOKENS == request.computed < len(request) - PAGE_TOKENS:
            page = self.pool.share(request.digest(len(request.blocks)))
            if page is None:
                return
            request.blocks.append(page)
            request.computed += PAGE_TOKENS
            if not request.recomputed:
                request.cached_tokens += PAGE_TOKENS
                self.prompt_tokens_cached += PAGE_TOKENS

    def _add_prompts(self, passes: list[list[Part[R]]], planned: list[Part[R]]) -> None:
        usual = [work_of(parts) for parts in passes]
        if not passes or len(passes[-1]) == self.pass_tokens:
            passes.append([])
        budget: int | None = None
        coming = set[bytes]()
        for request in [r for r in self.running if not r.decoding]:
            if request not in self.running or budget == 0:
                continue  # it was preempted meanwhile, or nothing more fits the step
            self._share(request)
            at = request.computed
            if budget is None:
                budget = self._budget(usual, passes, at)
            if self.reuse and self._page_of(request, at) in coming:
                continue  # somebody computes that page in this step
            long = request.pending > self.pass_tokens < self.prompt_tokens
            while budget and at < len(request):
                end = self._room(request, min(at + (self.prompt_tokens if long else budget), len(request)), planned)
                if end <= at:
                    budget = 0
                    break
                part = Part(request, at, end - at, decodes=False, is_last=end == len(request))
                if long:
                    self._long, budget = part, 0
                    break
                passes[-1].append(part)
                planned.append(part)
                coming.update(request.digest(p) for p in range(at // PAGE_TOKENS, end // PAGE_TOKENS) if self.reuse)
                at = end
                budget -= part.count
                if not budget:
                    budget = self._another(usual, passes, end)
        if not passes[-1]:
            passes.pop()

    def _page_of(self, request: R, position: int) -> bytes | None:
        """The digest of the page that a token lies in, of a page that may be shared once it is computed."""
        page = position // PAGE_TOKENS
        return request.digest(page) if (page + 1) * PAGE_TOKENS < len(request) else None

    def _budget(self, usual: list[Work], passes: list[list[Part[R]]], position: int) -> int:
        """Prompt tokens from a position on that the step may take with the last of its passes; one at least."""
        room = min(self.prompt_tokens, self.pass_tokens - len(passes[-1]))
        if not usual:
            return room
        return max(1, self.costs.affordable(usual, [work_of(p) for p in passes], position, room, self.pace))

    def _another(self, usual: list[Work], passes: list[list[Part[R]]], position: int) -> int:
        """Prompt tokens that a pass more takes of the step, which is begun for them; none where others have no use for
        the time, or where weights would be read for a few.
        """
        room = min(self.prompt_tokens, self.pass_tokens)
        works = [work_of(parts) for parts in passes]
        if not usual or works[-1].tokens < self.pass_tokens:
            return 0
        count = self.costs.affordable(usual, [*works, NOTHING], position, room, self.pace)
        if 2 * count < room:
            return 0
        passes.append([])
        return count

    def _room(self, request: R, end: int, planned: list[Part[R]]) -> int:
        """See that there are pages for a request's tokens up to `end`; how far there are.

        Raises no error where there are none: younger requests give theirs up, but those that were planned already.
        """
        while len(request.blocks) < pages_for(end):
            page = self.pool.take()
            if page is not None:
                request.blocks.append(page)
            elif not self._preempt(request, planned):
                break
        return min(end, len(request.blocks) * PAGE_TOKENS)

    def _preempt(self, request: R, planned: list[Part[R]]) -> bool:
        """Have the youngest that came after a request give up its pages; whether there is one."""
        kept = {id(part.request) for part in planned}
        for victim in reversed(self.running):
            if victim is request:
                return False
            if id(victim) not in kept:
                self._stop(victim)
                victim.recomputed = True
                self.waiting.appendleft(victim)
                self.preemptions += 1
                return True
        return False

    def _stop(self, request: R) -> None:
        self.running.remove(request)
        self.pool.give_back(request.blocks)
        request.blocks, request.computed = array("q"), 0
        if self._long is not None and self._long.request is request:
            self._long = None


def work_of(parts: list[Part[R]]) -> Work:
    """What a pass of these parts has to do."""
    work = NOTHING
    for part in parts:
        work = work.with_part(part.first, part.count)
    return work
