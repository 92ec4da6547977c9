"""What published weights and counts become: matrices in this project's formats, and a profile as far as it is known."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from hybrid.checkpoint.tensors import SourceTensor
from profiler.artifacts import UserError
from profiler.formats import BLOCK
from profiler.matrix import FORMAT_OF, Matrix
from profiler.predictor import QUANTISED
from profiler.profile import Counts, Profile

FORMATS = ("keep", "f16", QUANTISED)
ROWS = 1024  # converted together
LARGEST_F16 = 65504.0
Shares = npt.NDArray[np.float64]


def convert(tensor: SourceTensor, wanted: str) -> Matrix:
    """The values in 16 bits or in q8_0; in bf16 where they are beyond f16, in 16 bits where no blocks of 32 fit.

    Raises:
        UserError: a value is not a finite number, or beyond the format: names the file.
    """
    largest = 0.0
    for block in tensor.blocks(ROWS):
        low, high = torch.aminmax(block)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise UserError(f"{tensor.shard}: {tensor.name} holds values that are not finite numbers")
        largest = max(largest, -float(low), float(high))
    if wanted == QUANTISED and tensor.shape[1] % BLOCK == 0:
        weight_format = QUANTISED
    elif wanted == "keep" and tensor.dtype in FORMAT_OF:
        weight_format = FORMAT_OF[tensor.dtype]
    else:
        weight_format = "f16" if largest <= LARGEST_F16 else "bf16"
    try:
        parts = [Matrix.quantised(block, weight_format).data for block in tensor.blocks(ROWS)]
    except UserError as error:
        raise UserError(f"{tensor.shard}: {tensor.name}: {error}; import it with --format f16") from error
    matrix = Matrix(torch.cat(parts), weight_format, tensor.shape[1])
    if not matrix.is_finite():
        raise UserError(f"{tensor.shard}: {tensor.name} holds values beyond the range of {weight_format}")
    return matrix


def make_profile(source_digest: str, active: Counts, named: Shares | None) -> Profile:
    """The profile of published counts `[layers, neurons]`, as far as it can be known.

    The files do not say of how many tokens they are: that is taken to be the greatest count. Unions of B tokens are
    those of independent ones, 1 - (1 - f)^B. What predictors name is as often as they did on a text, shares `[layers,
    neurons]`, or without one as often as neurons are active.
    """
    tokens = int(active.max())
    unions = [np.rint(tokens * (1 - (1 - active / tokens) ** width)).astype(np.int64) for width in (4, 16)]
    return Profile(
        source_digest,
        hashlib.sha256(b"published counts\0" + active.astype("<i8").tobytes()).hexdigest(),
        tokens,
        active=active,
        named=active if named is None else np.rint(tokens * named).astype(np.int64),
        union4=np.clip(unions[0], active, tokens),
        union16=np.clip(unions[1], active, tokens),
        has_predictors=True,
    )
