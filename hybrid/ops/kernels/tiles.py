"""How large a piece a program takes, which is one warp on a GPU; the interpreter is given other pieces.

A GPU's memory answers after some 0.6 us: each of an H200's 132 multiprocessors needs about 25 KB on their way to keep
up 4.8 TB/s, each of an RTX 4090's 128 about 5 KB for 1 TB/s. A warp has 16 loads of 256 or 512 bytes on their way, or
32 of 128 or 512 where it adds rows; 16 and 4 to 8 warps to a multiprocessor make 30 KB at the least. Warps wait for
nobody and share nothing, so that a piece is only as long as its own loads. Registers are what bounds this: `registers`
says how many a thread may have, since the compiler else takes few, for more warps than there are.

With more tokens a warp takes more rows at once, which then share what it loads of states from the nearest cache.
The interpreter's cost is its calls, whatever their size up to some thousand numbers: it is given few larger pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton

from hybrid.ops.kernels.weights import words_of
from hybrid.ops.limits import DownCut
from profiler.formats import BLOCK, is_quantised

WARP = 32
REGISTERS = 255  # the most that a thread can have
DOT_TOKENS = 8  # that share what is loaded of weights; 16 take two turns, of which memory only sees the first
LISTED = 512  # pairs of token and row that a program which adds rows looks at together
EMBEDDED = 256  # columns of a row that a program looks up
ROUNDED = 16  # blocks of a token that a program rounds
JOINED = 128  # columns that a program joins
INTERPRETED = bool(triton.knobs.runtime.interpret)
INTERPRETED_PRODUCTS = 1 << 16  # that the interpreter computes together, or four times as many of bytes


@dataclass(frozen=True)
class DotTile:
    """For `weights.dots`: tokens and rows at once, threads for a row, loads of each on their way.

    programs: for each multiprocessor, where a fixed number of them deals rows out among themselves; dealt: rows that
    each of these looks at together, to find those that are wanted.
    """

    tokens: int
    rows: int
    lanes: int
    unroll: int
    programs: int
    dealt: int
    registers: int

    @property
    def arguments(self) -> dict[str, int]:
        """As kernels and the compiler name them."""
        shape = {"TOKENS": self.tokens, "ROWS": self.rows, "LANES": self.lanes, "UNROLL": self.unroll}
        return {**shape, "num_warps": 1, "maxnreg": self.registers}


def dot_tile(weight_format: str, columns: int, tokens: int, interpreted: bool = INTERPRETED) -> DotTile:
    """For the products of `tokens` states with vectors of `columns` weights."""
    tokens, quantised = min(triton.next_power_of_2(tokens), DOT_TOKENS), is_quantised(weight_format)
    words = words_of(weight_format) if quantised else 0
    threads = triton.cdiv(columns // BLOCK if quantised else columns, 4)
    if interpreted:
        lanes = min(triton.next_power_of_2(threads), 512)
        return DotTile(
            tokens, min(INTERPRETED_PRODUCTS // (tokens * lanes * 4), 256), lanes, words or 1, 1, 256, REGISTERS
        )
    lanes, few = min(triton.next_power_of_2(threads), WARP), tokens <= 2
    if quantised:
        rows = 4 if few and words == 1 else 2
        unroll = words if few else min(words, 16 // tokens)
    else:
        rows = 2 if few else 4
        unroll = triton.cdiv(threads, lanes * triton.cdiv(threads, lanes * (16 if few else 8) // rows))
    return DotTile(tokens, rows * (WARP // lanes), lanes, unroll, *((16, 64, 128) if few else (8, 64, REGISTERS)))


@dataclass(frozen=True)
class DownTile:
    """For adding down vectors: tokens at once, rows on their way, and how rows and columns are cut."""

    tokens: int
    unroll: int
    cut: DownCut

    @property
    def arguments(self) -> dict[str, int]:
        """As kernels and the compiler name them."""
        shape = {"TOKENS": self.tokens, "WIDTH": self.cut.width, "UNROLL": self.unroll}
        return {**shape, "LISTED": LISTED // self.tokens, "num_warps": 1, "maxnreg": REGISTERS}


def down_tile(weight_format: str, hidden: int, rows: int, tokens: int, interpreted: bool = INTERPRETED) -> DownTile:
    """For `rows` rows of `hidden` columns."""
    tokens, cut = min(triton.next_power_of_2(tokens), DOT_TOKENS), DownCut.of(weight_format, hidden, rows)
    if interpreted:
        return DownTile(tokens, 4, replace(cut, width=triton.next_power_of_2(cut.blocks * cut.width), blocks=1))
    return DownTile(tokens, 32 if tokens <= 2 else 8, cut)
