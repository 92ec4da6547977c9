"""The operators that a program records, each against the reference; attention has a file of its own."""

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hybrid.ops import cpu, reference
from hybrid.ops.bank import RowBank
from profiler.formats import is_quantised
from profiler.matrix import MATRIX_FORMATS, WEIGHT_FORMATS, Matrix

pytestmark = pytest.mark.usefixtures("isa")
RunProgram = Callable[..., float]
POOLS = [cpu.Pool(threads) for threads in (1, 2, 3)]
UNTOUCHED = 77.0
FORMATS, OF_MATRICES = st.sampled_from(WEIGHT_FORMATS), st.sampled_from(MATRIX_FORMATS)
SEEDS, TOKENS = st.integers(0, 1 << 20), st.integers(1, 16)
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 333]))
BLOCKS = st.integers(1, 36)


def buffer(width: int) -> torch.Tensor:
    """What an operator writes to."""
    return torch.full((cpu.MAX_TOKENS, width), UNTOUCHED)


def written(y: torch.Tensor, tokens: int) -> torch.Tensor:
    """The rows of the step's tokens; those of others were left alone."""
    assert bool((y[tokens:] == UNTOUCHED).all())
    return y[:tokens]


def table(weight_format: str, rows: int, width: int, padding: int = 0) -> Matrix:
    """A random matrix, its rows perhaps further apart than they are long; scales of many sizes."""
    values = torch.randn(rows, width) * 10 ** (4 * torch.rand(rows, 1) - 4)
    stored = Matrix.quantised(values, weight_format).data
    return Matrix(functional.pad(stored, (0, 2 * padding))[:, : stored.shape[1]], weight_format, width)


@settings(deadline=None, max_examples=60)
@given(weight_format=FORMATS, odd=WIDTHS, blocks=BLOCKS, tokens=TOKENS, padding=st.integers(0, 3), seed=SEEDS)
def test_embeddings_and_learned_positions(
    run_program: RunProgram, weight_format: str, odd: int, blocks: int, tokens: int, padding: int, seed: int
) -> None:
    torch.manual_seed(seed)
    width = 32 * blocks if is_quantised(weight_format) else odd
    words, places = table(weight_format, 23, width, padding), table(weight_format, 40, width, padding)
    ids, positions, y = torch.randint(23, (tokens,)), torch.randint(38, (tokens,)), buffer(width)
    program, step = cpu.Program(), {"ids": ids.tolist(), "positions": positions.tolist()}
    address, stride, number, *_ = cpu.matrix_arguments(words)
    program.embed(address, stride, number, width, y.data_ptr())
    run_program(program, tokens, **step)
    assert torch.equal(written(y, tokens), reference.embed(words, ids))
    address, stride, number, *_ = cpu.matrix_arguments(places)
    program.add_positions(address, stride, number, width, 2, y.data_ptr())
    run_program(program, tokens, **step)
    expected = reference.embed(words, ids) + reference.embed(places, positions + 2)
    assert torch.equal(written(y, tokens), expected)


@settings(deadline=None, max_examples=40)
@given(heads=st.integers(1, 5), half=st.integers(1, 70), rest=st.integers(0, 40), tokens=TOKENS, seed=SEEDS)
def test_rotary_positions(run_program: RunProgram, heads: int, half: int, rest: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    size = 2 * half + rest
    x, cosines, sines = buffer(heads * size), buffer(half), buffer(half)
    given_x = torch.randn(tokens, heads, size)
    x[:tokens] = given_x.flatten(1)
    positions, frequencies = torch.randint(5000, (tokens,)), 10000 ** (-torch.arange(half) / half)
    program = cpu.Program()
    program.angles(frequencies.data_ptr(), half, cosines.data_ptr(), sines.data_ptr())
    program.rotate(x.data_ptr(), heads, size, 2 * half, cosines.data_ptr(), sines.data_ptr())
    run_program(program, tokens, positions=positions.tolist())
    expected = reference.rope(given_x, positions, frequencies).flatten(1)
    torch.testing.assert_close(written(x, tokens), expected, atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    width=WIDTHS, vectors=st.integers(1, 3), tokens=TOKENS, centred=st.booleans(), with_bias=st.booleans(),
    in_place=st.booleans(), size=st.integers(-3, 3), seed=SEEDS,
)  # fmt: skip
def test_norms(
    run_program: RunProgram, width: int, vectors: int, tokens: int, centred: bool, with_bias: bool, in_place: bool,
    size: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    x, weight = buffer(vectors * width), torch.randn(width)
    y = x if in_place else buffer(vectors * width)
    states = (torch.randn(tokens * vectors, width) + 0.5) * 10**size
    x[:tokens] = states.view(tokens, -1)
    bias = torch.randn(width) if centred and with_bias else None
    program = cpu.Program()
    address = 0 if bias is None else bias.data_ptr()
    program.norm(centred, x.data_ptr(), weight.data_ptr(), address, width, vectors, 1e-5, y.data_ptr())
    run_program(program, tokens)
    found = written(y, tokens).reshape(-1, width)
    if not centred:
        torch.testing.assert_close(found, reference.rms_norm(states, weight, 1e-5), atol=1e-6, rtol=2e-6)
        return
    # Where the values of a state are almost the same, what is left of them is a difference of almost equal numbers.
    lost = float((states.abs().amax(1) / (states.var(1, correction=0) + 1e-5).sqrt()).max())
    expected = reference.layer_norm(states, weight, bias, 1e-5)
    torch.testing.assert_close(found, expected, atol=2e-6 * (1 + lost), rtol=2e-6)


@settings(deadline=None, max_examples=40)
@given(formats=st.lists(OF_MATRICES, min_size=1, max_size=8), blocks=BLOCKS, tokens=TOKENS, seed=SEEDS)
def test_several_matrices_of_one_input(
    run_program: RunProgram, formats: list[str], blocks: int, tokens: int, seed: int
) -> None:
    """The bits of `cpu.linear`, which is held against the reference elsewhere, with any number of threads."""
    torch.manual_seed(seed)
    x = buffer(32 * blocks)
    x[:tokens] = torch.randn(tokens, 32 * blocks)
    weights = [table(name, int(torch.randint(1, 90, ())), 32 * blocks, i % 3) for i, name in enumerate(formats)]
    biases = [torch.randn(weight.rows) if i % 2 else None for i, weight in enumerate(weights)]
    expected = [cpu.linear(POOLS[0], x[:tokens], w, b) for w, b in zip(weights, biases, strict=True)]
    for pool in POOLS:
        outputs, program = [buffer(weight.rows) for weight in weights], cpu.Program()
        matrices = [cpu.matrix_arguments(w, b, y) for w, b, y in zip(weights, biases, outputs, strict=True)]
        program.linear(pool, x.data_ptr(), 32 * blocks, matrices)
        run_program(program, tokens)
        assert all(torch.equal(written(y, tokens), e) for y, e in zip(outputs, expected, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    formats=st.tuples(OF_MATRICES, OF_MATRICES),
    n=st.integers(1, 500),
    tokens=TOKENS,
    seed=SEEDS,
    family=st.sampled_from(["perceptron", "factors", "gates"]),
    biased=st.booleans(),
)
def test_predictors_name_rows_by_the_neurons_they_hold(
    run_program: RunProgram, formats: tuple[str, str], n: int, tokens: int, seed: int, family: str, biased: bool
) -> None:
    torch.manual_seed(seed)
    hidden, rank = (32 * int(torch.randint(1, 9, ())) if is_quantised(name) else 45 for name in formats)
    rank = hidden if family == "gates" else rank
    formats = (formats[0], formats[0]) if family == "gates" else formats
    fc1 = None if family == "gates" else Matrix.quantised(torch.randn(rank, hidden), formats[0])
    fc2, bias = Matrix.quantised(torch.randn(n, rank), formats[1]), torch.randn(n) if biased else None
    neuron_ids = torch.randperm(n, dtype=torch.int32)
    x = buffer(hidden)
    x[:tokens] = torch.randn(tokens, hidden)
    rectified = family == "perceptron"
    middle = x[:tokens] if fc1 is None else cpu.linear(POOLS[0], x[:tokens], fc1)
    logits = cpu.linear(POOLS[0], middle.relu() if rectified else middle, fc2, bias)
    threshold = float(logits.median())  # itself not above
    for pool in POOLS:
        named, program = torch.full((cpu.MAX_TOKENS, n), 9, dtype=torch.uint8), cpu.Program()
        first = None if fc1 is None else cpu.matrix_arguments(fc1)
        matrices, addresses = (first, rectified, cpu.matrix_arguments(fc2, bias)), (x.data_ptr(), hidden)
        program.predict(pool, *matrices, threshold, neuron_ids.data_ptr(), *addresses, named.data_ptr())
        run_program(program, tokens)
        assert torch.equal(named[:tokens], (logits > threshold)[:, neuron_ids].to(torch.uint8))
        assert bool((named[tokens:] == 9).all())
    # The reference's products differ in the last bits, and a code of the middle values may fall to its neighbour.
    theirs = reference.predict(x[:tokens], fc1, rectified, fc2, bias, threshold)
    clear = (logits - threshold).abs() > 0.02 * logits.abs().max()
    assert torch.equal(theirs[clear], (logits > threshold)[clear])


@settings(deadline=None, max_examples=40)
@given(weight_format=FORMATS, gated=st.booleans(), cut=st.integers(0, 90), tokens=TOKENS, seed=SEEDS)
def test_banks_of_a_layer_add_up(
    run_program: RunProgram, weight_format: str, gated: bool, cut: int, tokens: int, seed: int
) -> None:
    """Two banks of one layer, the columns of one table naming their rows; run twice, what was counted adds up."""
    torch.manual_seed(seed)
    parts = [Matrix.quantised(torch.randn(90, 64), weight_format).data for _ in range(3 if gated else 2)]
    rows, bias = torch.cat(parts, 1), None if gated else torch.randn(90)
    x, y, named = buffer(64), buffer(64), torch.rand(cpu.MAX_TOKENS, 90) < 0.5
    x[:tokens] = torch.randn(tokens, 64)
    counts, program, banks, expected = torch.zeros(2, dtype=torch.int64), cpu.Program(), [], []
    for place in (slice(0, cut), slice(cut, 90)):
        here = None if bias is None else bias[place]
        bank = RowBank(rows[place], weight_format, 64, gated, "relu", here, first_row=place.start)
        banks.append(bank)
        expected.append(cpu.sparse_ffn(POOLS[0], bank, x[:tokens], named[:tokens, place]))
        where = (x.data_ptr(), named.data_ptr() + place.start, 90, len(banks) > 1, y.data_ptr())
        arguments = (*cpu.bank_arguments(bank), True, bank.addresses[1], *where)
        program.sparse_ffn(POOLS[1], *arguments, counts.data_ptr())
    for _ in range(2):
        run_program(program, tokens)
        assert torch.equal(written(y, tokens), expected[0][0] + expected[1][0])
    assert counts.tolist() == [2 * sum(c.gated for _, c in expected), 2 * sum(c.finished for _, c in expected)]


@pytest.mark.parametrize("width", [1, 7, 16, 45, 128])
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_sums(run_program: RunProgram, width: int, tokens: int) -> None:
    a, b, vector, program = buffer(width), buffer(width), torch.randn(width), cpu.Program()
    a[:tokens], b[:tokens] = torch.randn(2, tokens, width)
    expected = a[:tokens] + b[:tokens] + vector
    program.add(a.data_ptr(), b.data_ptr(), width, a.data_ptr())
    program.add_vector(vector.data_ptr(), width, a.data_ptr())
    run_program(program, tokens)
    assert torch.equal(written(a, tokens), expected)


def test_tokens_have_the_same_bits_alone_and_among_others(run_program: RunProgram) -> None:
    """Norms, rotary positions, matrices and tables, in one program for each number of threads."""
    words, weight = table("q4_0", 50, 96), table("q8_0", 70, 96)
    ids, positions, norm = torch.randint(50, (16,)).tolist(), torch.randint(900, (16,)).tolist(), torch.randn(96)
    frequencies, found = torch.rand(35), []
    for pool in POOLS:
        x, y, z, cosines, sines = buffer(96), buffer(96), buffer(70), buffer(35), buffer(35)
        program = cpu.Program()
        address, stride, number, *_ = cpu.matrix_arguments(words)
        program.embed(address, stride, number, 96, x.data_ptr())
        program.norm(False, x.data_ptr(), norm.data_ptr(), 0, 96, 1, 1e-6, y.data_ptr())
        program.norm(True, y.data_ptr(), norm.data_ptr(), norm.data_ptr(), 96, 1, 1e-6, y.data_ptr())
        program.linear(pool, y.data_ptr(), 96, [cpu.matrix_arguments(weight, None, z)])
        program.angles(frequencies.data_ptr(), 35, cosines.data_ptr(), sines.data_ptr())
        program.rotate(z.data_ptr(), 1, 70, 70, cosines.data_ptr(), sines.data_ptr())
        run_program(program, 16, ids=ids, positions=positions)
        found.append(z.clone())
        for t in range(16):
            run_program(program, 1, ids=ids[t : t + 1], positions=positions[t : t + 1])
            assert torch.equal(z[0], found[0][t])
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_a_program_keeps_its_pools(run_program: RunProgram) -> None:
    pool, program, weight, y = cpu.Pool(2), cpu.Program(), Matrix.of(torch.randn(300, 64).half()), buffer(300)
    x = torch.randn(16, 64)
    program.linear(pool, x.data_ptr(), 64, [cpu.matrix_arguments(weight, None, y)])
    del pool
    gc.collect()
    assert run_program(program, 16) > 0
    assert torch.equal(y, cpu.linear(POOLS[0], x, weight))
