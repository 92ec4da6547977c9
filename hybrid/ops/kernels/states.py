"""Triton kernels over the state of a token: norms, and rotary positions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    x, weight, bias, y, vectors, width, x_token, x_vector, y_token, y_vector, eps,
    CENTRED: tl.constexpr, BIASED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One vector of one token, whole in registers: so that y may be x. Grid `[tokens * vectors]`."""
    token = (tl.program_id(0) // vectors).to(tl.int64)
    vector = tl.program_id(0) % vectors
    places = tl.arange(0, WIDTH)
    within = places < width
    values = tl.load(x + token * x_token + vector * x_vector + places, within, other=0.0)
    if CENTRED:
        values = tl.where(within, values - tl.sum(values, 0) / width, 0.0)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / width + eps) * tl.load(weight + places, within, other=0.0)
    if BIASED:
        values += tl.load(bias + places, within, other=0.0)
    tl.store(y + token * y_token + vector * y_vector + places, values, within)


@triton.jit
def rotate_kernel(
    x, cosines, sines, heads, token_stride, head_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`HEADS` heads of one token, in place. Grid `[tokens, head blocks]`."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    place = tl.arange(0, WIDTH)
    turned = place < HALF
    cosine = tl.load(cosines + token * HALF + place, turned, other=0.0)[None, :]
    sine = tl.load(sines + token * HALF + place, turned, other=0.0)[None, :]
    within = (head < heads)[:, None] & turned[None, :]
    here = x + token * token_stride + head[:, None] * head_stride + place[None, :]
    first = tl.load(here, within, other=0.0)
    second = tl.load(here + HALF, within, other=0.0)
    tl.store(here, first * cosine - second * sine, within)
    tl.store(here + HALF, second * cosine + first * sine, within)
