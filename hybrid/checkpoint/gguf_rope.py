"""Rotary scaling of Llama 3.1 put back from the factors that a GGUF file holds in its stead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hybrid.checkpoint.tensors import SourceTensor
from profiler.artifacts import UserError

FACTORS = "rope_freqs.weight"
TOLERANCE = 1e-5  # of factors that are stored in fp32
LOW, HIGH = 1.0, 4.0  # of all models of Llama's; what is scaled depends on their ratios to the context alone
Factors = npt.NDArray[np.float64]


def llama3_scaling(tensor: SourceTensor, theta: float, dims: int) -> dict[str, Any] | None:
    """`rope_parameters` of what divides each of the frequencies of `dims` rotated values; None where nothing does.

    Frequencies whose wavelength is short beside the original context are kept, long ones are divided by `factor`, and
    those between by a mixture (Llama 3.1's `apply_scaling`): with s = context / wavelength, by
    1 / ((1 - t) / factor + t) where t = (s - low) / (high - low), between 0 and 1.

    Raises:
        UserError: the factors are not those of any such scaling.
    """
    wrong = UserError(
        f"{FACTORS} in {tensor.shard.name} is not the rotary scaling of Llama 3.1, which alone is supported"
    )
    if tensor.shape != (dims // 2,):
        raise wrong
    found = torch.cat([tensor.widened(block).clone() for block in tensor.blocks(dims)]).double().numpy()
    if not np.isfinite(found).all() or (found < 1 - TOLERANCE).any():
        raise wrong
    factor = float(np.float64(str(np.float32(found.max()))))
    if factor <= 1 + TOLERANCE:
        return None
    turns = theta ** (-np.arange(0, dims, 2) / dims) / (2 * math.pi)  # of each frequency in one token
    for low, high, context in _candidates(found, factor, turns):
        share = np.clip((context * turns - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - share) / factor + share), found, rtol=TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(context),
            }
    raise wrong


def _candidates(found: Factors, factor: float, turns: Factors) -> list[tuple[float, float, int]]:
    """Low and high factor and context, first those of models there are; then what two mixed frequencies tell."""
    candidates = [(LOW, HIGH, 1 << bits) for bits in (13, *range(3, 24))]
    mixed = np.flatnonzero((found > 1 + TOLERANCE) & (found < factor * (1 - TOLERANCE)))
    if len(mixed) > 1:
        shares = (1 / found[mixed] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(turns[mixed], shares, 1)  # context / (high - low), and -low / (high - low)
        if slope > 0 and offset < 0:
            width = -LOW / offset
            candidates.append((LOW, LOW + round(width, 3), round(slope * width)))
    return candidates
