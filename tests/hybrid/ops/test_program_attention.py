"""Keys and values into pages, and attention over them, against the pages' own methods and the reference."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model.kv_cache import LayerPages, Span
from hybrid.model.pages import PAGE_TOKENS, pages_for
from hybrid.ops import cpu, reference

pytestmark = pytest.mark.usefixtures("isa")
RunProgram = Callable[..., float]
POOLS = [cpu.Pool(threads) for threads in (1, 2, 3)]
DTYPES = st.sampled_from(list(cpu.PAGE_FORMATS))
SEEDS = st.integers(0, 1 << 20)
BLOCKS = 90  # pages of a test, whose places are drawn from them


@dataclass(frozen=True)
class Heads:
    """Shape of attention."""

    kv_heads: int
    shared: int  # query heads of each
    head_dim: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.shared


@dataclass(frozen=True)
class Text:
    """One sequence: how long it is, and how many of its tokens this step computes, which are the last ones."""

    length: int
    count: int


HEADS = st.builds(
    Heads,
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 5, 8]),
    st.sampled_from([1, 3, 8, 10, 13, 16, 31, 33, 64, 80, 100, 128]),
)
LENGTHS = st.one_of(st.integers(1, 60), st.sampled_from([511, 512, 513, 540, 1023, 1024, 1025, 1100]))


@st.composite
def texts(draw: st.DrawFn) -> list[Text]:
    """Sequences of one step, whose tokens are at most 16."""
    found, left = [], draw(st.integers(1, 16))
    for length in draw(st.lists(LENGTHS, min_size=1, max_size=5)):
        if left and sum(pages_for(text.length) for text in found) + pages_for(length) <= BLOCKS:
            found.append(Text(length, draw(st.integers(1, min(left, length)))))
            left -= found[-1].count
    return found


def make_pages(heads: Heads, dtype: torch.dtype, fill: float = float("nan")) -> LayerPages:
    """Pages that hold NaN, so that what was not written must not be read."""
    shape = (BLOCKS, heads.kv_heads, PAGE_TOKENS, heads.head_dim)
    return LayerPages(torch.full(shape, fill, dtype=dtype), torch.full(shape, fill, dtype=dtype))


def make_spans(texts: list[Text]) -> list[Span]:
    """Each sequence's last tokens, its blocks anywhere."""
    blocks = torch.randperm(BLOCKS).tolist()
    spans = []
    for text in texts:
        own, blocks = blocks[: pages_for(text.length)], blocks[pages_for(text.length) :]
        spans.append(Span(array("q", own), text.length - text.count, text.count))
    return spans


class Step:
    """Tokens of a step as programs take them."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self.positions = [p for span in spans for p in range(span.first_position, span.end)]
        self.tables = [span.blocks for span in spans for _ in range(span.count)]

    def __len__(self) -> int:
        return len(self.positions)

    def tokens(self, which: slice = slice(None)) -> dict[str, Any]:
        return {"positions": self.positions[which], "tables": self.tables[which]}


def arguments_of(pages: LayerPages) -> tuple[int, int, int]:
    return pages.keys.data_ptr(), pages.values.data_ptr(), cpu.PAGE_FORMATS[pages.keys.dtype]


def attend(
    run_program: RunProgram, pool: cpu.Pool, pages: LayerPages, heads: Heads, window: int, q: torch.Tensor,
    step: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """What the native operator makes of q `[tokens, heads, head_dim]`."""
    y, program, shape = torch.full_like(q, 77.0), cpu.Program(), (heads.heads, heads.kv_heads, heads.head_dim)
    program.attention(pool, q.data_ptr(), *arguments_of(pages), *shape, window, y.data_ptr())
    run_program(program, len(q), **step)
    return y


def fill(pages: LayerPages, spans: list[Span], heads: Heads, size: float = 1.0) -> None:
    """Random keys and values for all of each sequence."""
    for span in spans:
        shape = (span.end, heads.kv_heads, heads.head_dim)
        pages.write(Span(span.blocks, 0, span.end), torch.randn(shape) * size, torch.randn(shape))


@settings(deadline=None, max_examples=60)
@given(heads=HEADS, texts=texts(), window=st.sampled_from([0, 0, 1, 7, 24, 512, 600]), dtype=DTYPES, seed=SEEDS)
def test_attention(
    run_program: RunProgram, heads: Heads, texts: list[Text], window: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    pages, spans = make_pages(heads, dtype), make_spans(texts)
    fill(pages, spans, heads)
    step = Step(spans)
    q = torch.randn(len(step), heads.heads, heads.head_dim) * 2
    found = [attend(run_program, pool, pages, heads, window, q, step.tokens()) for pool in POOLS]
    assert all(torch.equal(other, found[0]) for other in found[1:])
    at = 0
    for span in spans:
        keys, values = pages.read(span)
        here = slice(at, at + span.count)
        expected = reference.attention(q[here], keys, values, span.first_position, window or None)
        torch.testing.assert_close(found[0][here], expected, atol=1e-5, rtol=1e-5)
        at += span.count
    for t in range(len(step)):
        alone = attend(
            run_program, POOLS[t % 3], pages, heads, window, q[t : t + 1].contiguous(), step.tokens(slice(t, t + 1))
        )
        assert torch.equal(alone[0], found[0][t])


@pytest.mark.parametrize("dtype", list(cpu.PAGE_FORMATS))
def test_scores_far_apart(run_program: RunProgram, dtype: torch.dtype) -> None:
    """Of keys whose scores differ by hundreds one takes all, also where spans of 512 keys are joined."""
    heads = Heads(2, 4, 64)
    pages, spans = make_pages(heads, dtype), make_spans([Text(1100, 2), Text(300, 3)])
    fill(pages, spans, heads, 40.0)
    step, q = Step(spans), torch.randn(5, 8, 64) * 40
    y = attend(run_program, POOLS[1], pages, heads, 0, q, step.tokens())
    for span, here in zip(spans, (slice(0, 2), slice(2, 5)), strict=True):
        keys, values = (kept.double() for kept in pages.read(span))
        for t in range(here.start, here.stop):
            seen = step.positions[t] + 1
            grouped = q[t].double().view(2, 4, 64)
            scores = torch.einsum("ghd,kgd->ghk", grouped, keys[:seen]) / 8
            expected = torch.einsum("ghk,kgd->ghd", scores.softmax(-1), values[:seen]).reshape(8, 64)
            # The scores are of the order of ten thousand, their last bits of that of a thousandth.
            torch.testing.assert_close(y[t].double(), expected, atol=5e-3, rtol=5e-3)


@settings(deadline=None, max_examples=40)
@given(heads=HEADS, texts=texts(), dtype=DTYPES, seed=SEEDS)
def test_keys_and_values_are_stored_as_torch_rounds_them(
    run_program: RunProgram, heads: Heads, texts: list[Text], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    stored, expected = make_pages(heads, dtype, 5.0), make_pages(heads, dtype, 5.0)
    step = Step(make_spans(texts))
    k, v = torch.randn(2, len(step), heads.kv_heads, heads.head_dim) * 10 ** (11 * torch.rand(2, len(step), 1, 1) - 8)
    program = cpu.Program()
    program.store(k.data_ptr(), v.data_ptr(), *arguments_of(stored), heads.kv_heads, heads.head_dim)
    run_program(program, len(step), **step.tokens())
    at = 0
    for span in step.spans:
        expected.write(span, k[at : at + span.count], v[at : at + span.count])
        at += span.count
    assert torch.equal(stored.keys, expected.keys)
    assert torch.equal(stored.values, expected.values)


@pytest.mark.parametrize("dtype", list(cpu.PAGE_FORMATS))
def test_every_kind_of_number_is_stored_as_torch_rounds_it(run_program: RunProgram, dtype: torch.dtype) -> None:
    """Halfway cases, subnormal numbers, what overflows, zeros of both signs, infinities and NaN; whole vectors too."""
    halves = torch.arange(0, 1 << 31, 4093 << 3, dtype=torch.int64).int().view(torch.float32)[:65000]
    around = torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 6e-8, 3.39e38])
    ties = (torch.arange(1 << 13) * (1 << 12) + 0x38000000).int().view(torch.float32)
    numbers = torch.cat([halves, around, ties, torch.tensor([0.0, float("inf"), float("nan")])])
    numbers = torch.cat([numbers, -numbers])
    width = 77
    numbers = torch.cat([numbers, numbers.new_zeros(-len(numbers) % width)]).view(-1, 1, width)
    heads, table = Heads(1, 1, width), array("q", [3])
    for at in range(0, len(numbers) - 16, 16):
        stored, expected = (LayerPages(*torch.zeros(2, 4, 1, PAGE_TOKENS, width, dtype=dtype)) for _ in range(2))
        some = numbers[at : at + 16].contiguous()
        program = cpu.Program()
        program.store(some.data_ptr(), some.data_ptr(), *arguments_of(stored), heads.kv_heads, width)
        run_program(program, 16, positions=range(16), tables=[table] * 16)
        expected.write(Span(table, 0, 16), some, some)
        assert torch.equal(stored.keys.nan_to_num(nan=7.0), expected.keys.nan_to_num(nan=7.0))
        assert torch.equal(stored.keys.isnan(), expected.keys.isnan())
        sound = ~stored.keys.isnan()
        assert torch.equal(stored.keys.signbit()[sound], expected.keys.signbit()[sound])


@pytest.mark.parametrize("where", ["query", "first key", "last key", "value"])
@pytest.mark.parametrize("dtype", list(cpu.PAGE_FORMATS))
def test_a_nan_is_not_hidden_and_stays_with_its_head(run_program: RunProgram, dtype: torch.dtype, where: str) -> None:
    heads = Heads(2, 4, 20)
    pages, spans = make_pages(heads, dtype), make_spans([Text(40, 1)])
    fill(pages, spans, heads)
    q = torch.randn(1, 8, 20)
    if where == "query":
        q[0, 6, 19] = float("nan")
    else:
        key = {"first key": 0, "last key": 39, "value": 21}[where]
        target = pages.values if where == "value" else pages.keys
        target[spans[0].blocks[key // PAGE_TOKENS], 1, key % PAGE_TOKENS, 19] = float("nan")
    y = attend(run_program, POOLS[1], pages, heads, 0, q, Step(spans).tokens())
    assert not y[0, :4].isnan().any()
    struck = y[0, 6:7] if where == "query" else y[0, 4:]
    assert struck[..., 19].isnan().all()
    assert where == "value" or struck.isnan().all()
