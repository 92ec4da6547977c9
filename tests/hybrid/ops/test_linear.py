"""The native linear operator against the reference in every format; the widening of weights, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hybrid.ops import cpu, reference
from profiler.formats import is_quantised, quant_bytes
from profiler.matrix import DTYPES, MATRIX_FORMATS, Matrix

pytestmark = pytest.mark.usefixtures("isa")
POOLS = [cpu.Pool(threads) for threads in (1, 2, 3)]
QUANTISED = [name for name in MATRIX_FORMATS if is_quantised(name)]
ROUNDINGS = 16 * torch.finfo(torch.float32).eps  # of a sum, in shares of the sum of its terms' magnitudes


@st.composite
def widths(draw: st.DrawFn, weight_format: str) -> int:
    """Inputs of a matrix: any number, or blocks that fill up to two and a half groups."""
    if is_quantised(weight_format):
        return 32 * draw(st.integers(1, 40))
    return draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 200, 4100])))


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_it_agrees_with_the_reference(data: st.DataObject) -> None:
    weight_format = data.draw(st.sampled_from(MATRIX_FORMATS))
    in_features = data.draw(widths(weight_format))
    out_features, tokens = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 16))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 20)))
    stored = Matrix.quantised(torch.randn(out_features, in_features, generator=generator), weight_format).data
    padded = functional.pad(stored, (0, 2 * data.draw(st.integers(0, 3))))
    weight = Matrix(padded[:, : stored.shape[1]], weight_format, in_features)
    bias = torch.randn(out_features, generator=generator) if data.draw(st.booleans()) else None
    x = torch.randn(tokens, in_features, generator=generator) * 10 ** torch.linspace(-3, 3, tokens)[:, None]

    y = cpu.linear(POOLS[0], x, weight, bias)
    wide, plus = weight.widened(slice(None)).double(), torch.zeros(out_features) if bias is None else bias
    exact = reference.rounded(x, weight_format).double() @ wide.T + plus
    allowed = ROUNDINGS * (x.abs().double() @ wide.abs().T + plus.abs())
    assert bool(((y - exact).abs() <= allowed).all())
    assert bool(((y - reference.linear(x, weight, bias)).abs() <= 2 * allowed).all())
    for pool in POOLS[1:]:
        assert torch.equal(cpu.linear(pool, x, weight, bias), y)
    for t in range(tokens):
        assert torch.equal(cpu.linear(POOLS[1], x[t : t + 1], weight, bias)[0], y[t])


@pytest.mark.parametrize("weight_format", ["bf16", "f16"])
def test_every_16_bit_weight_is_widened_exactly(weight_format: str) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).short().view(DTYPES[weight_format])
    alone = cpu.linear(POOLS[1], torch.ones(1, 1), Matrix.of(every[:, None]))[0]
    assert torch.equal(alone.nan_to_num(nan=7.0), every.float().nan_to_num(nan=7.0))
    assert torch.equal(alone.isnan(), every.isnan())
    finite = every[every.isfinite()]
    # Whole vectors, which take another path than the rest of a row.
    table = Matrix.of(finite[: len(finite) // 64 * 64].view(-1, 64))
    picked = torch.cat([cpu.linear(POOLS[1], torch.eye(64)[i : i + 16].contiguous(), table) for i in range(0, 64, 16)])
    assert torch.equal(picked.T, table.data.float())


@pytest.mark.parametrize("weight_format", QUANTISED)
@pytest.mark.parametrize("blocks", [1, 7, 16, 19, 33])
def test_every_byte_of_quants_is_multiplied_exactly(weight_format: str, blocks: int) -> None:
    """Any bytes, also -128, which no encoder writes. One value of 127 picks a column: its code is 127, exactly."""
    n = 32 * blocks
    quants = torch.randint(0, 256, (64, quant_bytes(weight_format, n)), dtype=torch.uint8)
    scales = torch.randn(64, blocks).half().view(torch.uint8)
    weight = Matrix(torch.cat([quants, scales], 1), weight_format, n)
    x = 127 * torch.eye(n)[torch.randperm(n)[:16]]
    assert torch.equal(cpu.linear(POOLS[1], x, weight), x @ weight.widened(slice(None)).T)


@pytest.mark.parametrize("weight_format", QUANTISED)
def test_the_longest_integer_sums_do_not_overflow(weight_format: str) -> None:
    quants = torch.full((4, quant_bytes(weight_format, 640)), 0x80 if weight_format == "q8_0" else 0, dtype=torch.uint8)
    scales = torch.ones(4, 20, dtype=torch.float16).view(torch.uint8)
    weight = Matrix(torch.cat([quants, scales], 1), weight_format, 640)
    least = {"q8_0": -128, "q4_0": -8, "b1": -1}[weight_format]
    for sign in (1, -1):
        y = cpu.linear(POOLS[0], torch.full((1, 640), 127.0 * sign), weight)
        assert torch.equal(y, torch.full((1, 4), 640.0 * 127 * sign * least))


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_stays_visible_and_with_its_token(weight_format: str, bad: float) -> None:
    weight = Matrix.quantised(torch.randn(9, 96), weight_format)
    for place in (0, 17, 31, 95):
        x = torch.randn(3, 96)
        x[1, place] = bad
        y = cpu.linear(POOLS[1], x, weight)
        assert not y[1].isfinite().any()
        assert torch.equal(y[[0, 2]], cpu.linear(POOLS[1], x[[0, 2]], weight))


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_blocks_of_zeros_add_nothing(weight_format: str) -> None:
    weight, bias = Matrix.quantised(torch.randn(9, 96), weight_format), torch.randn(9)
    assert torch.equal(cpu.linear(POOLS[0], torch.zeros(2, 96), weight, bias), bias.expand(2, 9))
    zero = Matrix.quantised(torch.zeros(9, 96), weight_format)
    assert torch.equal(cpu.linear(POOLS[0], torch.randn(2, 96), zero), torch.zeros(2, 9))
    # A block whose scale has no finite inverse is one of them, whatever the blocks beside it hold.
    x = torch.randn(1, 96)
    tiny = torch.cat([x[:, :32], torch.full((1, 32), 1e-38), x[:, 64:]], 1)
    without = torch.cat([x[:, :32], torch.zeros(1, 32), x[:, 64:]], 1)
    assert torch.equal(cpu.linear(POOLS[0], tiny, weight), cpu.linear(POOLS[0], without, weight))


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_more_tokens_are_the_reference_s(weight_format: str) -> None:
    x, weight = torch.randn(30, 64), Matrix.quantised(torch.randn(7, 64), weight_format)
    assert torch.equal(cpu.linear(POOLS[1], x, weight), reference.linear(x, weight))


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_no_tokens_have_no_outputs(weight_format: str) -> None:
    weight = Matrix.quantised(torch.randn(7, 64), weight_format)
    assert cpu.linear(POOLS[1], torch.zeros(0, 64), weight).shape == (0, 7)


def test_what_does_not_fit_is_refused() -> None:
    weight = Matrix.of(torch.zeros(3, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="x should be"):
        cpu.linear(POOLS[0], torch.zeros(1, 5), weight)
    with pytest.raises(ValueError, match="x should be contiguous"):
        cpu.linear(POOLS[0], torch.zeros(4, 2).T, weight)
    with pytest.raises(ValueError, match="bias"):
        cpu.linear(POOLS[0], torch.zeros(1, 4), weight, torch.zeros(2))
    with pytest.raises(ValueError, match="host memory"):
        cpu.linear(POOLS[0], torch.zeros(1, 4), weight.to("meta"))
    odd = Matrix(torch.zeros(2, 69, dtype=torch.uint8)[:, :34], "q8_0", 32)
    with pytest.raises(ValueError, match="stride_bytes should be even"):
        cpu.linear(POOLS[0], torch.zeros(1, 32), odd)
