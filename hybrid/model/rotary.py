"""Rotary positions: the frequencies of a model, with Llama 3's scaling."""

from __future__ import annotations

import functools
import math

import torch

from hybrid.spec import ModelSpec


@functools.cache
def inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    """fp32 `[rotary / 2]`: theta^(-2i/rotary), scaled where the spec says so. Computed once: read it only.

    rotary is `spec.rotary_size`, the values of a head that are rotated.

    Source: RoFormer (Su et al. 2021), equation 15; Llama 3.1's published scaling: wavelengths over the original
    context are stretched by `factor`, short ones kept, those between interpolated.
    """
    exponents = torch.arange(0, spec.rotary_size, 2, dtype=torch.int64).float() / spec.rotary_size
    frequencies = 1.0 / (spec.rope_theta**exponents)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    longest = scaling.original_positions / scaling.low_freq_factor
    shortest = scaling.original_positions / scaling.high_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_positions / wavelengths - scaling.low_freq_factor) / span
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > longest, frequencies / scaling.factor, between)
    return torch.where(wavelengths < shortest, frequencies, scaled)
