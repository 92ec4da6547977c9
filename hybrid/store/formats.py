"""Which weight format a checkpoint is packed in, and the conversion of its values."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hybrid.checkpoint.tensors import FLOATS, all_finite
from profiler.artifacts import UserError
from profiler.formats import WEIGHT_FORMATS, is_quantised
from profiler.matrix import DTYPES, Matrix

VECTORS = "f32"  # the format of norms and biases
STORED = {VECTORS: torch.float32, **DTYPES}


def choose_format(requested: str, stored: Mapping[str, int]) -> str:
    """The format asked for. stored: how many weights of matrices the checkpoint has in each type, by its name.

    `auto` keeps the 16-bit type in which all are; fp32, fp64 and mixtures become bf16, which cannot overflow. Of a
    quantised checkpoint the type of most weights counts: q8_0 and q4_0 are kept, and others become q8_0, whose rounding
    adds little to theirs.

    Raises:
        UserError: the format is not known.
    """
    if requested != "auto":
        if requested not in WEIGHT_FORMATS:
            raise UserError(f"weight format {requested!r} is not known; formats are auto, {', '.join(WEIGHT_FORMATS)}")
        return requested
    most = max(stored, key=lambda code: stored[code])
    if most in FLOATS:
        return "f16" if set(stored) == {"F16"} else "bf16"
    return most.lower() if is_quantised(most.lower()) else "q8_0"


def convert(values: torch.Tensor, stored_format: str, name: str) -> torch.Tensor:
    """Finite values of the tensor `name` as they are stored: in a weight format, or `f32`.

    Floats are rounded to nearest, or the values themselves where they are of that type. Quantised, values
    `[rows, n]` become uint8 `[rows, vector_bytes]`.

    Raises:
        UserError: a value is beyond the format's range.
    """
    if is_quantised(stored_format):
        try:
            return Matrix.quantised(values, stored_format).data
        except UserError as error:
            raise UserError(f"{name}: {error}; pack with --format bf16") from error
    dtype = STORED[stored_format]
    if values.dtype == dtype:
        return values
    converted = values.to(dtype)
    if not all_finite(converted):
        largest = float(values.abs().max())
        advice = "pack with --format bf16" if dtype == torch.float16 else "the checkpoint is damaged"
        raise UserError(
            f"{name} has a value of {largest:.3g}, too large for {str(dtype).removeprefix('torch.')}: {advice}"
        )
    return converted
