"""How large a piece a program takes, of one warp on a GPU: for the compiler, and other pieces for the interpreter.

A GPU's memory answers after some 0.6 us, so each of the H200's 132 multiprocessors needs about 25 KB on their way to
keep up 4.8 TB/s, an RTX 4090's 128 about 5 KB. A warp has some sixteen loads of 8 or 16 bytes for each thread on their way
here, 4 to 8 KB, in 64 registers, so that 24 to 32 warps fit and a few suffice. Nothing passes through shared memory,
and warps do not wait for each other. With more tokens a warp takes more rows, which then share what it loads of states,
and fewer warps fit. The interpreter's cost is its calls, whatever their size: it is given few large pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

from hybrid.ops.kernels.weights import parts_of
from profiler.formats import BLOCK, QUANT_BITS, is_quantised

WARP = 32
PROGRAMS = 16  # for each multiprocessor, of those that deal rows out among themselves
DEALT = 64  # rows that such a program looks at together
LISTED = 1024  # pairs of token and row that a program which adds rows looks at together
ROUNDED = 16  # blocks of a token that a program rounds
JOINED = 128  # columns that a program joins
DOWN_COLUMNS = 256  # that a program adds up: 512 bytes of a bf16 row, 144 of a q4_0 one
DOWN_PROGRAMS = 512  # of one bank, whatever the device, so that their sums are the same everywhere
INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class DotTile:
    """For `weights.dots`: tokens, rounded up to a power of two, rows at once, threads for a row, and loads of each."""

    tokens: int
    rows: int
    lanes: int
    unroll: int

    @property
    def arguments(self) -> dict[str, int]:
        """As kernels name them."""
        return {"TOKENS": self.tokens, "ROWS": self.rows, "LANES": self.lanes, "UNROLL": self.unroll}


def dot_tile(weight_format: str, columns: int, tokens: int, interpreted: bool = INTERPRETED) -> DotTile:
    """For the products of `tokens` states with vectors of `columns` weights."""
    tokens = triton.next_power_of_2(tokens)
    quantised = is_quantised(weight_format)
    threads = triton.cdiv(columns // BLOCK if quantised else columns, 4)
    lanes = min(triton.next_power_of_2(threads), 512 if interpreted else WARP)
    if interpreted:
        return DotTile(tokens, 32, lanes, 1)
    if quantised:
        rows = 4 if tokens <= 4 and QUANT_BITS[weight_format] < 8 else 2
    else:
        rows = 2 if tokens <= 2 else 4
    together = (16 if tokens <= 2 else 8) // rows
    loops = triton.cdiv(threads, lanes * together)
    return DotTile(tokens, rows * (WARP // lanes), lanes, triton.cdiv(threads, lanes * loops))


@dataclass(frozen=True)
class DownTile:
    """For adding down vectors: columns that a program takes, programs that share its columns, rows on their way."""

    width: int
    chunks: int
    unroll: int


def down_tile(weight_format: str, hidden: int, tokens: int, interpreted: bool = INTERPRETED) -> DownTile:
    """For a bank of rows of `hidden` columns."""
    if interpreted:
        return DownTile(max(triton.next_power_of_2(hidden), 8), 2, 8)
    loads = WARP if is_quantised(weight_format) else 8 * WARP  # words, of which a thread takes one, or floats
    width = loads * parts_of(weight_format)
    programs = DOWN_PROGRAMS * (2 if is_quantised(weight_format) else 1)
    return DownTile(width, max(programs // triton.cdiv(hidden, width), 1), 32 if tokens <= 2 else 8)
