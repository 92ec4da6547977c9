"""Operators count which rows they add up: natively, on a device and in the reference, as activations say."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import cpu, reference
from hybrid.ops.bank import Buckets, RowBank
from profiler.formats import is_quantised
from profiler.matrix import WEIGHT_FORMATS, Matrix

POOLS = [cpu.Pool(threads) for threads in (1, 3)]
LARGEST = {"q8_0": 127, "q4_0": -8}  # the quant that a block's largest value becomes


@dataclass(frozen=True)
class Case:
    """Rows from `first_row` of a layer on, and tokens that name some of them."""

    bank: RowBank
    x: torch.Tensor
    named: torch.Tensor | None
    skip_inactive: bool
    bucket_rows: int

    def buckets(self, device: str = "cpu") -> Buckets:
        """Counts of some before, so that adding is seen."""
        last = self.bank.first_row + len(self.bank)
        return Buckets(torch.full((last // self.bucket_rows + 2,), 100, device=device), self.bucket_rows)

    def by_bucket(self, fired: torch.Tensor) -> torch.Tensor:
        counts = self.buckets().counts
        places = (torch.arange(len(fired)) + self.bank.first_row) // self.bucket_rows
        return counts.index_add_(0, places, fired)

    def expected(self) -> torch.Tensor:
        """int64 [rows], from the activations of all rows: nothing is skipped to find them."""
        rows, bias = self.bank.memory
        shape = (self.bank.weight_format, self.bank.hidden, self.bank.gated, self.bank.activation, bias)
        gates, products = (torch.empty(len(self.x), len(self.bank)) for _ in range(2))
        reference.sparse_ffn(rows, *shape, self.x, None, False, products, self.bank.cutoff, gates)
        fired = torch.ones_like(gates, dtype=torch.bool) if self.named is None else self.named
        if self.skip_inactive:
            fired = fired & (gates != 0) & (gates.abs() > self.bank.cutoff)
            if self.bank.activation == "drelu":
                fired = fired & (products > 0)
        return fired.sum(0)


def exact(shape, weight_format, generator, states=False):
    """Multiples of a power of two that a format holds: products are the same in any order of summation."""
    if not is_quantised(weight_format):
        return torch.randint(-8, 9, shape, generator=generator) / 64
    blocks = torch.randint(-7, 8, (*shape[:-1], shape[-1] // 32, 32), generator=generator)
    place = torch.randint(32, (*blocks.shape[:-1], 1), generator=generator)
    return (blocks.scatter(-1, place, 127 if states else LARGEST[weight_format]) / 64).view(shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    weight_format, gated = draw(st.sampled_from(WEIGHT_FORMATS)), draw(st.booleans())
    hidden, n = 32 * draw(st.integers(1, 3)), draw(st.sampled_from([0, 1, 7, 64, 70, 300]))
    tokens = draw(st.sampled_from([1, 1, 2, 3, 16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    vectors = exact((n, 3 if gated else 2, hidden), weight_format, generator)
    rows = torch.cat([Matrix.quantised(part, weight_format).data for part in vectors.unbind(1)], 1)
    activation = draw(st.sampled_from(["relu", "relu2", "silu", "drelu"] if gated else ["relu", "silu"]))
    cutoff, first = draw(st.sampled_from([0.0, 1 / 8, 1.0])), draw(st.sampled_from([0, 1, 30, 64]))
    bank = RowBank(rows, weight_format, hidden, gated, activation, first_row=first, cutoff=cutoff)
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.9, 1.0]))
    named = None if share is None else torch.rand(tokens, n, generator=generator) < share
    x = exact((tokens, hidden), weight_format, generator, states=True)
    return Case(bank, x, named, draw(st.booleans()), draw(st.sampled_from([1, 4, 64, 512])))


@pytest.mark.usefixtures("isa")
@settings(deadline=None, max_examples=60)
@given(case=cases(), pool=st.sampled_from(POOLS))
def test_native_operators_count_what_they_add(run_program, case, pool):
    bank, tokens = case.bank, len(case.x)
    single = torch.zeros(len(bank), dtype=torch.int64)
    plain = cpu.sparse_ffn(pool, bank, case.x, case.named, case.skip_inactive)
    y, counts = cpu.sparse_ffn(pool, bank, case.x, case.named, case.skip_inactive, fired=single)
    assert torch.equal(y, plain[0]) and counts == plain[1]
    assert torch.equal(single, case.expected())
    x, out = torch.zeros(cpu.MAX_TOKENS, bank.hidden), torch.zeros(cpu.MAX_TOKENS, bank.hidden)
    pairs = torch.zeros(2, dtype=torch.int64)
    x[:tokens] = case.x
    named, buckets = case.named, case.buckets()
    where = (0, 0) if named is None else (named.data_ptr(), named.shape[1])
    tally = (buckets.counts.data_ptr(), buckets.rows, bank.first_row)
    program = cpu.Program()
    program.sparse_ffn(
        pool, *cpu.bank_arguments(bank), case.skip_inactive, bank.addresses[1], x.data_ptr(), *where, False,
        out.data_ptr(), pairs.data_ptr(), 0, 0, *tally,
    )  # fmt: skip
    run_program(program, tokens)
    assert torch.equal(buckets.counts, case.by_bucket(single))
    assert int(pairs[1]) == counts.finished


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_the_reference_counts_what_it_adds(case):
    bank, fired = case.bank, torch.zeros(len(case.bank), dtype=torch.int64)
    shape = (bank.weight_format, bank.hidden, bank.gated, bank.activation, bank.memory[1])
    sparse = (case.x, case.named, case.skip_inactive, None, bank.cutoff, None, fired)
    reference.sparse_ffn(bank.memory[0], *shape, *sparse)
    assert torch.equal(fired, case.expected())


@settings(deadline=None, max_examples=8)
@given(case=cases())
def test_device_operators_count_what_they_add(device, case):
    pytest.importorskip("triton")
    from hybrid.ops import cuda_weights
    from hybrid.ops.scratch import Scratch

    bank = case.bank
    rows, bias = bank.memory
    there = RowBank(
        rows.to(device), bank.weight_format, bank.hidden, bank.gated, bank.activation, bias, bank.first_row, bank.cutoff
    )
    x, named = case.x.to(device), None if case.named is None else case.named.to(device)
    buckets, counts, y = case.buckets(device), torch.zeros(2, dtype=torch.int64, device=device), torch.empty_like(x)
    cuda_weights.sparse_ffn(there, x, named, case.skip_inactive, y, counts, Scratch(device), buckets=buckets)
    assert torch.equal(buckets.counts.cpu(), case.by_bucket(case.expected()))


@pytest.mark.parametrize("wrong", [{"bucket_rows": 3}, {"bucket_rows": 0}, {"first_row": -1}, {"tally": 4}])
def test_what_makes_no_sense_is_refused(wrong):
    bank = RowBank(torch.zeros(4, 96, dtype=torch.bfloat16), "bf16", 32, True, "relu")
    pairs, x = torch.zeros(2, dtype=torch.int64), torch.zeros(cpu.MAX_TOKENS, 32)
    given_arguments = {"tally": torch.zeros(4, dtype=torch.int64).data_ptr(), "bucket_rows": 1, "first_row": 0, **wrong}
    with pytest.raises(ValueError, match=r"bucket_rows|first_row|tally"):
        cpu.Program().sparse_ffn(
            POOLS[0], *cpu.bank_arguments(bank), True, 0, x.data_ptr(), 0, 0, False, x.data_ptr(), pairs.data_ptr(),
            **given_arguments,
        )  # fmt: skip
    with pytest.raises(ValueError, match="fired"):
        cpu.sparse_ffn(POOLS[0], bank, x, fired=torch.zeros(4))
