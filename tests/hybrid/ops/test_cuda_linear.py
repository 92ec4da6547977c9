"""The device operators over whole matrices against the reference: embeddings, projections, predictors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from hybrid.ops import cuda_weights, reference
from hybrid.ops.scratch import Scratch
from hybrid.predictors.rows import RowPredictor
from profiler.formats import is_quantised
from profiler.matrix import MATRIX_FORMATS, WEIGHT_FORMATS, Matrix
from profiler.predictor import Predictor
from profiler.predictor_outline import EVERYTHING, NOTHING

FEW = settings(deadline=None, max_examples=8)


class Poisoned(Scratch):
    """Whatever is not written before it is read is not a number."""

    def get(self, name, shape, dtype):
        buffer = super().get(name, shape, dtype)
        return buffer.fill_(math.nan if dtype.is_floating_point else 0x7FC00000)


def columns_of(weight_format):
    return st.sampled_from([32, 96, 160, 512, 672, 1120] if is_quantised(weight_format) else [1, 7, 96, 100, 640, 1025])


def make_matrix(rows, columns, weight_format, device, apart=0):
    """Random weights; with `apart`, rows are that many bytes further apart than they are long, and begin there."""
    matrix = Matrix.quantised(torch.randn(rows, columns), weight_format)
    apart //= matrix.data.element_size()
    wide = torch.zeros(rows, matrix.data.shape[1] + apart, dtype=matrix.data.dtype, device=device)
    wide[:, apart:] = matrix.data.to(device)
    return Matrix(wide[:, apart:], weight_format, columns)


def multiplied(x, matrices, biases):
    """Products in the middle of wider rows, which keep what is beside them."""
    wide = [torch.full((len(x), m.rows + 3), math.nan, device=x.device) for m in matrices]
    ys = [y[:, 2 : 2 + m.rows] for y, m in zip(wide, matrices, strict=True)]
    cuda_weights.linear(x, list(zip(matrices, biases, ys, strict=True)), Poisoned(x.device))
    assert all(y[:, :2].isnan().all() and y[:, -1].isnan().all() for y in wide)
    return ys


@FEW
@given(st.data())
def test_products_are_those_of_the_reference(device, data):
    weight_format = data.draw(st.sampled_from(MATRIX_FORMATS))
    columns, tokens = data.draw(columns_of(weight_format)), data.draw(st.integers(1, 16))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    matrices = [
        make_matrix(data.draw(st.sampled_from([1, 5, 33, 70])), columns, weight_format, device, apart)
        for apart in data.draw(st.lists(st.sampled_from([0, 2, 64]), min_size=1, max_size=4))
    ]
    biases = [torch.randn(m.rows, device=device) if data.draw(st.booleans()) else None for m in matrices]
    x = torch.randn(tokens, columns, device=device)
    for y, matrix, bias in zip(multiplied(x, matrices, biases), matrices, biases, strict=True):
        torch.testing.assert_close(y, reference.linear(x, matrix, bias), rtol=2e-5, atol=1e-4)


def test_matrices_of_several_formats_share_a_state(device):
    x = torch.randn(2, 64, device=device)
    matrices = [make_matrix(9, 64, weight_format, device) for weight_format in ("q8_0", "bf16", "q4_0", "f16")]
    for y, matrix in zip(multiplied(x, matrices, [None] * 4), matrices, strict=True):
        torch.testing.assert_close(y, reference.linear(x, matrix), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_a_token_has_the_same_bits_in_every_run_alone_and_among_others(device, weight_format):
    matrix = make_matrix(40, 672, weight_format, device)
    x = torch.randn(9, 672, device=device)
    ((y,), (again,)) = (multiplied(x, [matrix], [None]) for _ in range(2))
    assert torch.equal(y, again)
    for t in (0, 8):
        (alone,) = multiplied(x[t : t + 1], [matrix], [None])
        assert torch.equal(alone[0], y[t])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which the interpreter computes with
@pytest.mark.parametrize("weight_format", ["bf16", "q8_0", "q4_0"])
def test_what_is_no_number_stays_none(device, weight_format):
    matrix = make_matrix(5, 64, weight_format, device)
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.randn(2, 64, device=device)
        x[0, 40] = bad
        (y,) = multiplied(x, [matrix], [None])
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_states_too_small_to_matter_are_zeros_in_blocks(device):
    matrix = make_matrix(5, 64, "q8_0", device)
    for small in (0.0, 1e-38, 1e-42):
        (y,) = multiplied(torch.full((1, 64), small, device=device), [matrix], [None])
        assert (y == 0).all()


@FEW
@given(st.data())
def test_rounded_states_are_those_of_the_reference_to_the_last_bit(device, data):
    """An identity of blocks shows them: weights of one step, and zeros."""
    blocks = data.draw(st.sampled_from([1, 3, 16, 21]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = (torch.randn(3, 32 * blocks, generator=generator) * 10 ** data.draw(st.integers(-4, 4))).to(device)
    x[:, :32:3] = 0.5 * x[:, :1]  # ties, once in a while
    one = torch.eye(32 * blocks) * 127
    (y,) = multiplied(x, [Matrix.quantised(one, "q8_0").to(device)], [None])
    torch.testing.assert_close(y / 127, reference.rounded(x, "q8_0"), rtol=2e-7, atol=0)


def make_predictor(data, device, hidden, neurons):
    family = data.draw(st.sampled_from(["perceptron", "factors", "gates"]))
    formats = [data.draw(st.sampled_from(MATRIX_FORMATS)) for _ in range(2)]
    bias = torch.randn(neurons, device=device) if data.draw(st.booleans()) else None
    if family == "gates":
        return Predictor.gates(make_matrix(neurons, hidden, formats[1], device), 0.0, bias=bias)
    rank = data.draw(st.sampled_from([32, 128, 544]))
    fc1, fc2 = make_matrix(rank, hidden, formats[0], device), make_matrix(neurons, rank, formats[1], device)
    return Predictor.low_rank(fc1, fc2, 0.0, bias=bias, family=family)


@FEW
@given(st.data())
def test_predictors_name_the_rows_that_the_reference_names(device, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    hidden, neurons, tokens = data.draw(st.sampled_from([64, 160])), data.draw(st.integers(1, 90)), 3
    predictor, ids = make_predictor(data, device, hidden, neurons), torch.randperm(neurons, dtype=torch.int32)
    x, ids = torch.randn(tokens, hidden, device=device), ids.to(device)
    rectified = predictor.family == "perceptron"
    states = x if predictor.fc1 is None else reference.linear(x, predictor.fc1)
    logits = reference.linear(states.relu() if rectified else states, predictor.fc2, predictor.bias)
    levels = logits.flatten().sort().values
    between = levels.diff()[len(levels) // 4 : -len(levels) // 4 or None].argmax() + len(levels) // 4
    for threshold in (float(levels[between : between + 2].mean()), EVERYTHING, NOTHING):
        predictor = Predictor(**{**vars(predictor), "threshold": threshold})
        wide = torch.ones(tokens, neurons + 5, dtype=torch.bool, device=device)
        cuda_weights.predict(x, predictor, ids, wide[:, 2 : 2 + neurons], Poisoned(device))
        expected = RowPredictor(predictor, ids, reference.linear).named(x)
        assert torch.equal(wide[:, 2 : 2 + neurons], expected)
        assert wide[:, :2].all() and wide[:, 2 + neurons :].all()


@pytest.mark.parametrize("threshold", [EVERYTHING, NOTHING])
def test_a_predictor_without_weights_names_all_or_none(device, threshold):
    named = torch.full((2, 9), threshold > 0, device=device)
    ids = torch.arange(9, dtype=torch.int32, device=device)
    cuda_weights.predict(torch.zeros(2, 4, device=device), Predictor.none(4, 9, threshold), ids, named, Scratch(device))
    assert (named == (threshold < 0)).all()


@FEW
@given(st.data())
def test_embeddings_are_the_rows_of_the_table(device, data):
    weight_format = data.draw(st.sampled_from(WEIGHT_FORMATS))
    columns, tokens = data.draw(columns_of(weight_format)), data.draw(st.integers(1, 16))
    table = make_matrix(20, columns, weight_format, device, data.draw(st.sampled_from([0, 2, 64])))
    ids, offset = torch.randint(20, (tokens,)).to(device), data.draw(st.sampled_from([0, 2]))
    rows = table.widened(ids)
    y = torch.full((tokens, columns), math.nan, device=device)
    cuda_weights.embed(table, ids - offset, y, offset)
    assert torch.equal(y, rows)
    before = torch.randn(tokens, columns, device=device)
    y = before.clone()
    cuda_weights.embed(table, ids - offset, y, offset, add=True)
    assert torch.equal(y, before + rows)


def test_what_does_not_fit_is_refused(device):
    x, scratch = torch.zeros(2, 64, device=device), Scratch(device)
    matrix = make_matrix(5, 64, "q8_0", device)
    ids = torch.zeros(5, dtype=torch.int32, device=device)
    y, named = torch.zeros(2, 5, device=device), torch.zeros(2, 5, dtype=torch.bool, device=device)
    bytes_ = torch.zeros(400, dtype=torch.uint8, device=device)
    at_odd_bytes = Matrix(bytes_[1:341].view(5, 68), "q8_0", 64)
    predictor = Predictor.gates(matrix, 0.0)
    for call in (
        lambda: cuda_weights.linear(x.double(), [(matrix, None, y)], scratch),
        lambda: cuda_weights.linear(x.t().contiguous().t(), [(matrix, None, y)], scratch),
        lambda: cuda_weights.linear(x[:, :32].contiguous(), [(matrix, None, y)], scratch),
        lambda: cuda_weights.linear(x, [(matrix, None, y[:1])], scratch),
        lambda: cuda_weights.linear(x, [(matrix, y[0, :4], y)], scratch),
        lambda: cuda_weights.linear(x.repeat(9, 1), [(matrix, None, y.repeat(9, 1))], scratch),
        lambda: cuda_weights.linear(x, [(at_odd_bytes, None, y)], scratch),
        lambda: cuda_weights.predict(x, predictor, ids.long(), named, scratch),
        lambda: cuda_weights.predict(x, predictor, ids[:4], named[:, :4], scratch),
        lambda: cuda_weights.predict(x, predictor, ids, named.byte(), scratch),
        lambda: cuda_weights.predict(x, predictor, ids, named[:, :4], scratch),
        lambda: cuda_weights.embed(matrix, ids[:2], x),
        lambda: cuda_weights.embed(matrix, ids[:2].long(), x[:1]),
        lambda: cuda_weights.embed(Matrix(bytes_[:80].view(10, 8)[:, :6], "b1", 32), ids[:2].long(), x[:, :32]),
    ):
        with pytest.raises(ValueError, match=r"(are|is|has|lie) "):
            call()
