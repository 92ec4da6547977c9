"""The formats that weights are stored in, as sizes; without torch, for whoever only counts bytes."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.artifacts import UserError

WEIGHT_FORMATS = ("bf16", "f16", "q8_0", "q4_0")  # of a model
MATRIX_FORMATS = (*WEIGHT_FORMATS, "b1")  # of a predictor's matrices, which may have one bit for each weight
BLOCK = 32  # weights of a quantised vector that share one scale
SCALE_BYTES = 2
QUANT_BITS = {"q8_0": 8, "q4_0": 4, "b1": 1}
# What a matrix is made of in memory and in files, as numpy and torch name it: 16-bit floats, or bytes.
ELEMENTS = {"bf16": "bfloat16", "f16": "float16", "q8_0": "uint8", "q4_0": "uint8", "b1": "uint8"}


def is_quantised(weight_format: str) -> bool:
    """Whether vectors of this format are planes of quants and scales; the others are 16-bit floats."""
    return weight_format in QUANT_BITS


def quant_bytes(weight_format: str, n: int) -> int:
    """Bytes of the first plane of a quantised vector of `n` weights, its quants."""
    return n * QUANT_BITS[weight_format] // 8


def vector_bytes(weight_format: str, n: int) -> int:
    """Bytes of a vector of `n` weights.

    Raises:
        UserError: the format stores blocks of 32 weights, and `n` is not a whole number of them.
    """
    if not is_quantised(weight_format):
        return 2 * n
    if n % BLOCK:
        raise UserError(
            f"{weight_format} stores blocks of {BLOCK} weights, and a vector of {n} is not a whole number of them; "
            "bf16 and f16 can be used instead"
        )
    return quant_bytes(weight_format, n) + n // BLOCK * SCALE_BYTES


def bits_per_weight(weight_format: str) -> float:
    """Bits of storage for one weight, its share of the scale included."""
    return vector_bytes(weight_format, BLOCK) * 8 / BLOCK


def check_matrix(weight_format: str, columns: int, dtype: str, shape: Sequence[int]) -> None:
    """Refuse elements of type `dtype` and of a shape that are no matrix of `columns` weights a row in a format.

    Raises:
        ValueError: they are not, or the format is not known.
        UserError: a quantised format, and columns that are not a whole number of blocks.
    """
    if weight_format not in MATRIX_FORMATS:
        raise ValueError(f"weight format {weight_format!r} is not known; known are {', '.join(MATRIX_FORMATS)}")
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"a matrix cannot have {columns!r} columns")
    element = ELEMENTS[weight_format]
    width = vector_bytes(weight_format, columns) // (1 if is_quantised(weight_format) else 2)
    if len(shape) != 2 or dtype != element or shape[1] != width:
        raise ValueError(
            f"a {weight_format} matrix of {columns} columns is {element} [rows, {width}], not {dtype} {list(shape)}"
        )


def sixteen_bit_format(dtype: str, shape: Sequence[int]) -> str:
    """The format of a matrix whose elements are its weights.

    Raises:
        ValueError: they are of another type or shape.
    """
    for name, element in ELEMENTS.items():
        if not is_quantised(name) and dtype == element and len(shape) == 2:
            return name
    raise ValueError(f"a matrix is bfloat16 or float16 [rows, columns], not {dtype} {list(shape)}")
