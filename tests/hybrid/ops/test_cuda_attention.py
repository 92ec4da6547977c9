"""Keys and values into pages on the device and attention over them, against the pages and the reference."""

from array import array
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model.kv_cache import KV_DTYPES, LayerPages, Span
from hybrid.model.pages import PAGE_TOKENS, pages_for
from hybrid.ops import cuda_states, reference
from hybrid.ops.limits import attention_splits
from hybrid.ops.scratch import Scratch

BLOCKS = 60  # pages of a test, whose places are drawn from them
CONTEXT = 512
DTYPES = st.sampled_from(list(KV_DTYPES.values()))
SEEDS = st.integers(0, 1 << 20)


@dataclass(frozen=True)
class Heads:
    """Shape of attention; `shared` query heads read each key-value head."""

    kv_heads: int
    shared: int
    head_dim: int


HEADS = st.builds(
    Heads, st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 8, 11]), st.sampled_from([1, 5, 8, 13, 64, 80, 96, 128])
)
TEXTS = st.lists(st.integers(1, 300), min_size=1, max_size=3)


class Texts:
    """Sequences of one step, of `lengths` tokens, the last `counts` of them in this step, their blocks anywhere."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        blocks = torch.randperm(BLOCKS).tolist()
        self.spans: list[Span] = []
        for length in lengths:
            own, blocks = blocks[: pages_for(length)], blocks[pages_for(length) :]
            count = int(torch.randint(1, min(length, 6 // len(lengths)) + 1, ()))
            self.spans.append(Span(array("q", own), length - count, count))
        self.positions = torch.tensor([p for s in self.spans for p in range(s.first_position, s.end)], device=device)
        self.tables = torch.full((len(self.positions), CONTEXT // PAGE_TOKENS), 1 << 20, dtype=torch.int32)
        for row, span in zip(self.tables, (s for s in self.spans for _ in range(s.count)), strict=True):
            row[: len(span.blocks)] = torch.tensor(span.blocks)
        self.tables = self.tables.to(device)

    def __len__(self) -> int:
        return len(self.positions)


def make_pages(heads: Heads, dtype: torch.dtype, device: torch.device) -> LayerPages:
    """Pages that hold NaN, so that what was not written must not be read."""
    shape = (BLOCKS, heads.kv_heads, PAGE_TOKENS, heads.head_dim)
    return LayerPages(*(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2)))


def fill(pages: LayerPages, texts: Texts, heads: Heads, size: float = 1.0) -> None:
    """Random keys and values for all of each sequence."""
    for span in texts.spans:
        k, v = torch.randn(2, span.end, heads.kv_heads, heads.head_dim, device=pages.keys.device)
        pages.write(Span(span.blocks, 0, span.end), k * size, v)


def attend(scratch, q: torch.Tensor, pages: LayerPages, texts: Texts, which=slice(None), window=None) -> torch.Tensor:
    y = torch.full_like(q[which], torch.nan)
    cuda_states.attend(
        q[which], pages, texts.positions[which], texts.tables[which], window, y, scratch, context=CONTEXT
    )
    return y


@settings(deadline=None, max_examples=20)
@given(heads=HEADS, lengths=TEXTS, window=st.sampled_from([None, None, 1, 7, 24, 130]), dtype=DTYPES, seed=SEEDS)
def test_attention(device, heads, lengths, window, dtype, seed):
    torch.manual_seed(seed)
    scratch, pages, texts = Scratch(device), make_pages(heads, dtype, device), Texts(lengths, device)
    fill(pages, texts, heads)
    q = torch.randn(len(texts), heads.kv_heads * heads.shared, heads.head_dim, device=device) * 2
    y = attend(scratch, q, pages, texts, window=window)
    at = 0
    for span in texts.spans:
        keys, values = pages.read(span)
        here = slice(at, at + span.count)
        expected = reference.attention(q[here], keys, values, span.first_position, window)
        torch.testing.assert_close(y[here], expected, atol=1e-5, rtol=1e-5)
        at += span.count
    t = seed % len(texts)
    assert torch.equal(attend(Scratch(device), q, pages, texts, slice(t, t + 1), window)[0], y[t])


@pytest.mark.parametrize("window", [None, 100])
def test_every_run_has_the_same_bits_whatever_scratch_held(device, window):
    heads = Heads(2, 4, 64)
    pages, texts = make_pages(heads, torch.float16, device), Texts([300, 17, 200], device)
    fill(pages, texts, heads)
    q = torch.randn(len(texts), 8, 64, device=device)
    first, scratch = attend(Scratch(device), q, pages, texts, window=window), Scratch(device)
    for poison in (torch.nan, 1e30):
        for name in ("sums", "weights"):
            width = {"sums": 64, "weights": 2}[name]
            splits = attention_splits(8, 2, CONTEXT if window is None else window + PAGE_TOKENS)
            scratch.get(f"attention {name}", (16, 8, splits, width), torch.float32).fill_(poison)
        assert torch.equal(attend(scratch, q, pages, texts, window=window), first)


@pytest.mark.parametrize("dtype", list(KV_DTYPES.values()))
def test_scores_far_apart(device, dtype):
    """Of keys whose scores differ by hundreds one takes all, also where splits are joined."""
    heads = Heads(2, 4, 64)
    pages, texts = make_pages(heads, dtype, device), Texts([500, 300], device)
    fill(pages, texts, heads, 40.0)
    q = torch.randn(len(texts), 8, 64, device=device) * 40
    y, t = attend(Scratch(device), q, pages, texts), 0
    for span in texts.spans:
        keys, values = (kept.double() for kept in pages.read(span))
        for seen in range(span.first_position + 1, span.end + 1):
            scores = torch.einsum("ghd,kgd->ghk", q[t].double().view(2, 4, 64), keys[:seen]) / 8
            expected = torch.einsum("ghk,kgd->ghd", scores.softmax(-1), values[:seen]).reshape(8, 64)
            # The scores are of the order of ten thousand, their last bits of that of a thousandth.
            torch.testing.assert_close(y[t].double(), expected, atol=5e-3, rtol=5e-3)
            t += 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which the interpreter computes with
@pytest.mark.parametrize("where", ["query", "first key", "last key", "value"])
def test_a_nan_is_not_hidden_and_stays_with_its_head(device, where):
    heads = Heads(2, 4, 20)
    pages, texts = make_pages(heads, torch.float16, device), Texts([80], device)
    fill(pages, texts, heads)
    q = torch.randn(len(texts), 8, 20, device=device)
    if where == "query":
        q[-1, 6, 19] = torch.nan
    else:
        key = {"first key": 0, "last key": 79, "value": 21}[where]
        target = pages.values if where == "value" else pages.keys
        target[texts.spans[0].blocks[key // PAGE_TOKENS], 1, key % PAGE_TOKENS, 19] = torch.nan
    y = attend(Scratch(device), q, pages, texts)
    assert not y[:, :4].isnan().any()
    struck = y[-1, 6:7] if where == "query" else y[-1, 4:]
    assert struck[..., 19].isnan().all()
    assert where == "value" or struck.isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", list(KV_DTYPES.values()))
def test_every_kind_of_number_is_stored_as_torch_rounds_it(device, dtype):
    """Halfway cases, subnormal numbers, what overflows, zeros of both signs, infinities and NaN."""
    halves = torch.arange(0, 1 << 31, 4093 << 7, dtype=torch.int64).int().view(torch.float32)
    around = torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 6e-8, 3.39e38])
    ties = (torch.arange(1 << 10) * (1 << 15) + 0x38000000).int().view(torch.float32)
    numbers = torch.cat([halves, around, ties, torch.tensor([0.0, torch.inf, torch.nan])])
    numbers = torch.cat([numbers, -numbers])
    numbers = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 16)]).view(16, 1, -1).to(device)
    stored, expected = (LayerPages(*torch.zeros(2, 1, 1, 16, numbers.shape[2], dtype=dtype, device=device))
                        for _ in range(2))  # fmt: skip
    tables = torch.zeros(16, 1, dtype=torch.int32, device=device)
    cuda_states.store(numbers, numbers, stored, torch.arange(16, device=device), tables)
    expected.write(Span(array("q", [0]), 0, 16), numbers, numbers)
    assert torch.equal(stored.keys.isnan(), expected.keys.isnan())
    assert torch.equal(stored.keys.nan_to_num(nan=7.0), expected.keys.nan_to_num(nan=7.0))
    sound = ~stored.keys.isnan()
    assert torch.equal(stored.keys.signbit()[sound], expected.keys.signbit()[sound])


@settings(deadline=None, max_examples=20)
@given(heads=HEADS, lengths=TEXTS, dtype=DTYPES, padding=st.sampled_from([0, 3]), seed=SEEDS)
def test_keys_and_values_are_stored_as_torch_rounds_them(device, heads, lengths, dtype, padding, seed):
    torch.manual_seed(seed)
    stored, expected = (make_pages(heads, dtype, device) for _ in range(2))
    texts = Texts(lengths, device)
    shape = (len(texts), heads.kv_heads, heads.head_dim + padding)
    k, v = (torch.randn(shape, device=device) * 10 ** (11 * torch.rand(len(texts), 1, 1, device=device) - 8)
            for _ in range(2))  # fmt: skip
    k, v = k[..., : heads.head_dim], v[..., : heads.head_dim]
    cuda_states.store(k, v, stored, texts.positions, texts.tables)
    at = 0
    for span in texts.spans:
        expected.write(span, k[at : at + span.count], v[at : at + span.count])
        at += span.count
    assert torch.equal(stored.keys.nan_to_num(nan=7.0), expected.keys.nan_to_num(nan=7.0))
    assert torch.equal(stored.values.nan_to_num(nan=7.0), expected.values.nan_to_num(nan=7.0))


def test_what_does_not_fit_is_refused(device):
    heads = Heads(2, 1, 8)
    pages, texts = make_pages(heads, torch.float16, device), Texts([20], device)
    q = torch.randn(len(texts), 2, 8, device=device)
    with pytest.raises(ValueError, match="do not share 2"):
        attend(Scratch(device), torch.randn(len(texts), 3, 8, device=device), pages, texts)
    with pytest.raises(ValueError, match="heads of 9"):
        attend(Scratch(device), torch.randn(len(texts), 2, 9, device=device), pages, texts)
    texts.tables = texts.tables.long()
    with pytest.raises(ValueError, match="int32"):
        attend(Scratch(device), q, pages, texts)
    texts.positions = texts.positions.int()
    with pytest.raises(ValueError, match="positions"):
        cuda_states.store(q, q, pages, texts.positions, texts.tables)


def test_a_long_context_is_cut_for_the_whole_device_and_a_short_one_not_at_all():
    assert attention_splits(32, 8, 32768) == 32
    assert attention_splits(32, 32, 32768) == 8
    assert attention_splits(71, 1, 2048) == 29
    assert attention_splits(32, 8, 64) == 1
    assert attention_splits(64, 64, 1) == 1
