"""How kernels read weights of any format: dot products with whole vectors, and columns of vectors.

Everything about the layout of `profiler.blocks` that kernels know is here.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dots(
    weights, starts, live, x, tokens,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """fp32 `[TOKENS, ROWS]`: of vectors `starts [ROWS]` (int64) elements from `weights` on, with the x of each token.

    Those that are not `live` are not read. The sums of a token are the same whatever TOKENS, ROWS and UNROLL are.
    """
    token = tl.arange(0, TOKENS)[:, None, None]
    column = tl.arange(0, LANES)[:, None] * 8 + tl.arange(0, 8)[None, :]
    sums = tl.zeros([TOKENS, ROWS, LANES], tl.float32)
    for first in range(0, COLUMNS, LANES * 8 * UNROLL):
        for step in tl.static_range(UNROLL):
            place = (first + step * LANES * 8 + column)[None, :, :]
            within = place < COLUMNS
            w = tl.load(weights + starts[:, None, None] + place, within & live[:, None, None], other=0.0)
            states = tl.load(x + token * COLUMNS + place, within & (token < tokens), other=0.0)
            sums += tl.sum(w.to(tl.float32)[None, :, :, :] * states[:, None, :, :], 3)
    return tl.sum(sums, 2)
