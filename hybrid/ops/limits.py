"""How much operators hold at once, so that their memory stays bounded and can be counted beforehand. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.formats import QUANT_BITS, is_quantised

NATIVE_TOKENS = 16  # up to here operators widen no weights into memory
ROWS_AT_ONCE = 1024  # widened to fp32 together
SCORES_AT_ONCE = 1 << 24  # attention scores held together
ATTENTION_HEADS = 8  # query heads of one key-value head that a program of the GPU takes together, at most
ATTENTION_PROGRAMS = 256  # for one token, where its text is long enough: one to ten for each multiprocessor
SPLIT_KEYS = 64  # that a program takes at least, so that what programs leave stays small beside what they read
MOST_BUCKETS = 256  # of a layer's rows, in each of which those that fire are counted
MOST_DEALING = 4096  # programs of a GPU that deal a bank's rows out among themselves
CHUNK_ROWS = 128  # of a bank, that a GPU adds up by themselves at the least


def attention_splits(heads: int, kv_heads: int, keys: int) -> int:
    """Parts that a GPU cuts a text into, of which a token may see `keys` keys; the device has no say in it."""
    programs = kv_heads * -(-heads // kv_heads // ATTENTION_HEADS)
    return max(1, min(-(-keys // SPLIT_KEYS), -(-ATTENTION_PROGRAMS // programs)))


@dataclass(frozen=True)
class DownCut:
    """How a GPU cuts the down vectors of a bank: into columns, and into chunks of rows that leave a partial sum each.

    width: columns of a program; chunks; room: rows of a chunk, rounded up to whole loads. The device has no say in it,
    so that sums have the same bits on every one.
    """

    width: int
    blocks: int
    chunks: int
    room: int

    @staticmethod
    def of(weight_format: str, hidden: int, rows: int) -> DownCut:
        """For `rows` rows of `hidden` weights.

        A warp reads 512 bytes of a row of 16-bit floats, or 256 of the quants of a row of blocks.
        """
        width = 2048 // QUANT_BITS[weight_format] if is_quantised(weight_format) else 256
        blocks = -(-hidden // width)
        chunks = max(1, min(512 // blocks, rows // CHUNK_ROWS))
        return DownCut(width, blocks, chunks, -(-rows // (16 * chunks)) * 16)
