"""Matrices of weights: what they say of themselves, what widening gives, and what is refused."""

import pytest
import torch

from profiler.artifacts import UserError
from profiler.matrix import MATRIX_FORMATS, Matrix

VALUES = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
STEPS = {
    "bf16": 2**-8,
    "f16": 2**-11,
    "q8_0": 1 / 254,
    "q4_0": 1 / 8,
    "b1": 1,
}  # of the largest value of a block, but for the rounding of its scale


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_widening_gives_the_values_but_for_rounding(weight_format):
    matrix = Matrix.quantised(VALUES, weight_format)
    whole = matrix.widened(slice(None))
    assert (whole.dtype, whole.shape, matrix.shape) == (torch.float32, (9, 64), (9, 64))
    bound = VALUES.view(9, 2, 32).abs().amax(-1, keepdim=True).expand(9, 2, 32).reshape(9, 64)
    assert bool(((whole - VALUES).abs() <= bound * STEPS[weight_format] * 1.15).all())
    assert torch.equal(matrix.widened(slice(2, 5)), whole[2:5])
    assert torch.equal(matrix.widened(torch.tensor([7, 0, 7])), whole[[7, 0, 7]])
    assert matrix.widened(torch.tensor([], dtype=torch.long)).shape == (0, 64)


@pytest.mark.parametrize(
    ("weight_format", "width"), [("bf16", 128), ("f16", 128), ("q8_0", 68), ("q4_0", 36), ("b1", 12)]
)
def test_sizes(weight_format, width):
    matrix = Matrix.quantised(VALUES, weight_format)
    assert (matrix.rows, matrix.columns, matrix.nbytes, matrix.stride_bytes) == (9, 64, 9 * width, width)
    assert matrix.device == torch.device("cpu")


@pytest.mark.parametrize("weight_format", MATRIX_FORMATS)
def test_a_view_of_records_is_a_matrix_and_its_copy_is_dense(weight_format):
    plain = Matrix.quantised(VALUES, weight_format)
    records = torch.zeros(9, 3 * plain.data.shape[1] + 4, dtype=plain.data.dtype)
    width = plain.data.shape[1]
    records[:, width : 2 * width] = plain.data
    view = Matrix(records[:, width : 2 * width], weight_format, 64)
    assert view.stride_bytes == records.shape[1] * records.element_size() and view.nbytes == plain.nbytes
    assert torch.equal(view.widened(slice(None)), plain.widened(slice(None)))
    copy = view.to("cpu")
    assert copy.data.data_ptr() != view.data.data_ptr() and copy.stride_bytes == plain.stride_bytes
    assert torch.equal(copy.data, plain.data)


def test_16_bit_tensors_are_taken_as_they_are():
    values = VALUES.bfloat16()
    matrix = Matrix.of(values)
    assert matrix.weight_format == "bf16" and matrix.data is values
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        Matrix.of(VALUES)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        Matrix.of(values[0])


def test_what_is_not_finite_is_seen():
    for weight_format in MATRIX_FORMATS:
        matrix = Matrix.quantised(VALUES, weight_format)
        assert matrix.is_finite()
        matrix.data[4, -2:] = (
            torch.tensor([0, 0x7C], dtype=torch.uint8) if matrix.data.dtype == torch.uint8 else torch.inf
        )
        assert not matrix.is_finite()


HALF, BYTES = torch.zeros(4, 32).half(), torch.zeros(4, 34, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "weight_format", "columns", "match"),
    [
        (HALF, "f32", 32, "'f32' is not known"),
        (HALF, "bf16", 32, "bfloat16"),
        (HALF, "f16", 31, "31"),
        (HALF[0], "f16", 32, "rows, 32"),
        (HALF[:, :0], "f16", 0, "0 columns"),
        (HALF, "f16", 32.0, "32.0 columns"),
        (HALF.T.contiguous().T, "f16", 32, "strides"),
        (HALF[:1].expand(4, 32), "f16", 32, "strides"),
        (HALF, "q8_0", 32, "uint8"),
        (BYTES[:, :32], "q8_0", 32, r"rows, 34\]"),
        (BYTES, "q4_0", 32, r"rows, 18\]"),
    ],
)
def test_what_does_not_fit_is_refused(data, weight_format, columns, match):
    with pytest.raises(ValueError, match=match):
        Matrix(data, weight_format, columns)


def test_columns_that_are_no_whole_blocks():
    with pytest.raises(UserError, match="vector of 33"):
        Matrix(BYTES, "q8_0", 33)
    with pytest.raises(UserError, match="vector of 33"):
        Matrix.quantised(VALUES[:, :33], "q4_0")
