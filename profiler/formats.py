"""The formats that weights are stored in, as sizes; without torch, for whoever only counts bytes."""

from __future__ import annotations

from profiler.artifacts import UserError

WEIGHT_FORMATS = ("bf16", "f16", "q8_0", "q4_0")  # of a model
MATRIX_FORMATS = (*WEIGHT_FORMATS, "b1")  # of a predictor's matrices, which may have one bit for each weight
BLOCK = 32  # weights of a quantised vector that share one scale
SCALE_BYTES = 2
QUANT_BITS = {"q8_0": 8, "q4_0": 4, "b1": 1}


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
