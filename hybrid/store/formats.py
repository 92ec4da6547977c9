"""The weight formats of the store, and the conversion of a checkpoint's values to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hybrid.checkpoint.tensors import all_finite
from hybrid.store.layout import WEIGHT_CODES
from profiler.artifacts import UserError

FORMATS = {"bf16": torch.bfloat16, "f16": torch.float16}
assert set(FORMATS) == set(WEIGHT_CODES)


def choose_format(requested: str, matrices: Iterable[torch.dtype]) -> str:
    """The format asked for. `auto` keeps a checkpoint's 16-bit type; fp32, fp64 and mixtures become bf16, which cannot
    overflow.

    Raises:
        UserError: the format is not known.
    """
    if requested == "auto":
        return "f16" if set(matrices) == {torch.float16} else "bf16"
    if requested not in FORMATS:
        raise UserError(f"weight format {requested!r} is not known; formats are auto, {', '.join(FORMATS)}")
    return requested


def convert(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Finite values in another type, rounded to nearest; the values themselves where they are of that type.

    Raises:
        UserError: a value is beyond the type's range.
    """
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
