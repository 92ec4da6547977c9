"""Whatever comes when, all requests end, in order, and no page is lost or written by one who does not own it."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model.pages import PAGE_TOKENS, pages_for
from hybrid.runtime.batcher import Batcher, work_of
from hybrid.runtime.page_pool import PagePool
from hybrid.runtime.paged_tokens import PagedTokens

CONTEXT = 80


class Request(PagedTokens):
    """Ends after `wanted` tokens, which follow from its prompt; or when it is cancelled, at a step of its own."""

    def __init__(self, prompt, wanted, arrives=0, cancelled=None):
        super().__init__(prompt)
        self.wanted = min(wanted, CONTEXT - len(prompt))
        self.arrives, self.cancelled = arrives, cancelled

    @property
    def over(self):
        return len(self.output_ids) >= self.wanted

    def sample(self):
        self.output_ids.append(sum(self.token_ids) % 7)


@dataclass
class World:
    """Computes what a batcher plans: a page holds for each position all tokens up to there, as keys and values do."""

    batcher: Batcher
    content: dict = field(default_factory=dict)
    steps: int = 0

    def step(self, long_ends=True):
        batcher, pool = self.batcher, self.batcher.pool
        self.check(batcher.plan())  # of which nothing is done, as where a step fails
        plan = batcher.plan()
        self.check(plan)
        if plan.long is not None and long_ends:
            self.compute(plan.long)
        for parts in plan.passes:
            for part in parts:
                self.compute(part)
        assert pool.used + pool.free == pool.total
        assert pool.cached <= pool.free
        self.steps += 1
        return plan

    def check(self, plan):
        batcher = self.batcher
        order = [r.number for r in [*batcher.running, *batcher.waiting]]
        assert order == sorted(order), "nobody overtakes another"
        assert len(batcher.running) <= batcher.slots
        parts = [part for some in plan.passes for part in some]
        assert all(0 < sum(p.count for p in some) <= batcher.pass_tokens for some in plan.passes)
        computed = {id(part.request) for part in parts}
        for request in batcher.running:
            own = [part for part in parts if part.request is request]
            assert all(sum(p.request is request for p in some) < 2 for some in plan.passes), "once in a pass"
            assert all(a.first + a.count == b.first and not a.decodes for a, b in pairwise(own)), "one after the other"
        left_out = [
            r for r in batcher.running if id(r) not in computed and (not plan.long or plan.long.request is not r)
        ]
        if batcher.pool.free:
            assert not any(r.decoding for r in left_out), "a sampled token is computed in the next step"
        if any(not r.decoding for r in left_out) and batcher.pool.free:
            assert plan.long or not all(part.decodes for part in parts), "prompts go on in every step"
        if batcher.running:
            oldest = batcher.running[0]
            assert id(oldest) in computed or plan.long, "the oldest goes on"
        assert parts or plan.long or not (batcher.running or batcher.waiting)

    def compute(self, part):
        request, ids = part.request, part.request.token_ids
        assert part.first == request.computed
        assert part.is_last == (part.first + part.count == len(request))
        for position in range(part.first + part.count):
            place = request.blocks[position // PAGE_TOKENS], position % PAGE_TOKENS
            if position >= part.first:
                owners = [r for r in self.batcher.running if place[0] in r.blocks]
                assert owners == [request], "who writes a page has it alone"
                self.content[place] = tuple(ids[: position + 1])
            assert self.content[place] == tuple(ids[: position + 1])
        if part.is_last:
            request.sample()
        self.batcher.done(part)
        if request.over:
            self.batcher.remove(request)


def world(pages=None, slots=4, pass_tokens=16, prompt_tokens=16, **options):
    pool = PagePool(pages or slots * pages_for(CONTEXT), options.pop("keep", None))
    return World(Batcher(pool, slots, pass_tokens, prompt_tokens, **options))


def add(batcher, *requests, first=0):
    for number, request in enumerate(requests, first):
        request.number = number
        batcher.add(request)


def finish(world, most=10_000):
    while world.batcher.running or world.batcher.waiting:
        world.step()
        assert world.steps < most
    assert world.batcher.pool.used == 0


prompts = st.one_of(
    st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT - 1),
    st.integers(1, CONTEXT - 1).map(lambda n: list(range(n))),  # all begin alike
)
requests = st.lists(
    st.builds(Request, prompts, st.integers(1, 40), st.integers(0, 60), st.none() | st.integers(0, 80)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(
    requests=requests,
    extra=st.integers(0, 20),
    slots=st.integers(1, 20),
    sizes=st.sampled_from([(16, 16), (4, 4), (16, 5), (16, 40), (3, 64), (8, 1)]),
    keep=st.none() | st.integers(0, 8),
    reuse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_requests_end_and_no_page_is_lost(requests, extra, slots, sizes, keep, reuse, seed):
    world_ = world(pages_for(CONTEXT) + extra, slots, *sizes, keep=keep, reuse=reuse)
    batcher, dice = world_.batcher, random.Random(seed)
    coming = sorted(requests, key=lambda r: r.arrives)
    for number, request in enumerate(coming):
        request.number = number
    arrived = []
    while coming or batcher.running or batcher.waiting:
        while coming and coming[0].arrives <= world_.steps:
            arrived.append(coming.pop(0))
            batcher.add(arrived[-1])
        for request in arrived:
            if request.cancelled is not None and request.cancelled <= world_.steps:
                batcher.remove(request)
        plan = world_.step(long_ends=dice.random() < 0.5)
        for parts in plan.passes:
            batcher.costs.observe(work_of(parts), dice.random())
        assert world_.steps < 20_000
    assert batcher.pool.used == 0
    assert batcher.pool.free == batcher.pool.total
    for request in requests:
        assert request.over or request.cancelled is not None
        assert len(request.blocks) == 0


def test_a_prompt_that_was_computed_is_found_up_to_its_last_token():
    one = world()
    first, second, longer = Request(list(range(48)), 3), Request(list(range(48)), 3), Request(list(range(60)), 3)
    add(one.batcher, first)
    finish(one)
    add(one.batcher, second)
    one.step()
    assert second.cached_tokens == 32, "the page of the last token is computed, since its logits are wanted"
    finish(one)
    add(one.batcher, longer)
    finish(one)
    assert longer.cached_tokens == 48
    assert first.cached_tokens == 0
    assert one.batcher.prompt_tokens_cached == 80
    assert one.batcher.prompt_tokens_seen == 156


def test_what_was_generated_is_found_too():
    one = world()
    first = Request(list(range(20)), 30)
    add(one.batcher, first)
    finish(one)
    again = Request([*first.token_ids, 5], 1)
    add(one.batcher, again)
    finish(one)
    assert again.cached_tokens == 48, "all pages that its 49 tokens filled"


def test_requests_of_one_prompt_share_its_pages_while_they_run():
    one = world(slots=8)
    many = [Request(list(range(64)), 4) for _ in range(8)]
    add(one.batcher, *many)
    computed = 0
    while one.batcher.running or one.batcher.waiting:
        plan = one.step()
        computed += sum(part.count for parts in plan.passes for part in parts if not part.decodes)
    assert computed == 64 + 7 * 16
    assert [r.cached_tokens for r in many] == [0] + [48] * 7


def test_who_could_share_a_page_that_is_computed_now_waits_for_it():
    one = world(prompt_tokens=5)
    first, second = Request(list(range(48)), 9), Request(list(range(60)), 1)
    add(one.batcher, first, second)
    finish(one)
    assert second.cached_tokens == 48


def test_another_text_before_a_page_makes_it_another_page():
    one = world()
    add(one.batcher, Request([0] * 16 + [1] * 32, 1))
    finish(one)
    other = Request([2] * 16 + [1] * 32, 1)
    add(one.batcher, other)
    finish(one)
    assert other.cached_tokens == 0


def test_without_reuse_nothing_is_shared_or_remembered():
    one = world(reuse=False)
    for _ in range(2):
        request = Request(list(range(48)), 1)
        add(one.batcher, request)
        finish(one)
        assert request.cached_tokens == one.batcher.pool.cached == 0


def test_the_youngest_gives_up_its_pages_and_goes_on_where_it_was():
    one = world(pages=6, slots=3)
    texts = [Request([n] * 20, 50) for n in range(3)]
    alone = [[*r.prompt_ids] for r in texts]
    add(one.batcher, *texts)
    finish(one)
    assert one.batcher.preemptions > 0
    for request, prompt in zip(texts, alone, strict=True):
        again = Request(prompt, 50)
        while not again.over:
            again.sample()
        assert request.output_ids == again.output_ids
        assert request.cached_tokens == 0, "its own pages are no other's"


def test_a_text_of_the_whole_context_ends_beside_others_in_the_smallest_pool():
    one = world(pages=pages_for(CONTEXT), slots=4)
    add(one.batcher, *[Request([n] * 40, CONTEXT) for n in range(4)])
    finish(one)


@pytest.mark.parametrize("decoding", [1, 16, 17, 40])
def test_all_that_decode_get_a_token_in_every_step(decoding):
    one = world(slots=64, pages=64 * pages_for(CONTEXT))
    short = [Request([n], 50) for n in range(decoding)]
    add(one.batcher, *short)
    while not all(r.output_ids for r in short):
        one.step()
    late = Request(list(range(30)), 1)
    add(one.batcher, late, first=decoding)
    while not late.output_ids:
        before = [len(r.output_ids) for r in short]
        plan = one.step()
        assert [len(r.output_ids) for r in short] == [n + 1 for n in before]
        beside = [sum(p.decodes for p in parts) for parts in plan.passes if parts[0].decodes]
        assert beside == [min(16, decoding - at) for at in range(0, decoding, 16)]
        assert all(sum(p.count for p in parts) == 16 for parts in plan.passes[:-1]), "rows are read as seldom as can be"


def test_beside_a_nearly_full_pass_a_prompt_has_one_of_its_own():
    one = world(slots=16, pages=64 * pages_for(CONTEXT))
    for tokens in [*range(1, 17)] * 4:
        one.batcher.costs.observe(work_of([]).with_part(0, tokens), 1e-2 + 2e-3 * tokens)
    add(one.batcher, *(short := [Request([n], 50) for n in range(13)]))
    while not all(r.output_ids for r in short):
        one.step()
    late = Request(list(range(10, 30)), 1)
    add(one.batcher, late, Request(list(range(40, 60)), 1), first=13)
    prompts = [(p.request, p.first, p.count) for parts in one.step().passes for p in parts if not p.decodes]
    assert prompts == [(late, 0, 3), (late, 3, pytest.approx(10, abs=1))], "twice 36 ms, of which the first took 42"
    one.batcher.pace = 1.5
    assert len(one.step().passes) == 1, "what is left of the pace is not worth a pass"
    finish(one)


def test_a_long_piece_has_a_pass_of_its_own_and_is_begun_anew_where_its_request_is_gone():
    one = world(prompt_tokens=64)
    one.batcher.costs.observe(work_of([]), 1.0)
    first, second = Request(list(range(70)), 2), Request(list(range(5, 75)), 2)
    add(one.batcher, first, second)
    plan = one.step(long_ends=False)
    assert (plan.long.request, plan.long.count, plan.passes, plan.seconds) == (first, 64, [], None)
    assert one.step(long_ends=False).long is plan.long, "the same piece goes on"
    one.batcher.remove(first)
    plan = one.step()
    assert (plan.long.request, plan.long.is_last) == (second, False)
    plan = one.step()
    assert plan.long is None
    assert plan.passes[0][0].count == 6
    finish(one)
