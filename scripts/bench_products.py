"""How fast products of 1 to 16 tokens with a matrix are from memory, and with the matrix in cache.

    python scripts/bench_products.py [--width 2048] [--threads 2] [--json FILE]

One token is bound by memory, 16 are bound by arithmetic: so 16 requests at once are as many times as fast as one as the
two rates allow. The last two columns say how many: of the products as they come from memory, and at most, if memory
took no time with 16 tokens. Matrices of 256 MiB together take turns where memory is meant; cases take turns in rounds,
and figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hybrid.ops import cpu
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.processor import processor_name
from profiler.matrix import Matrix

FORMATS = ("f16", "q8_0", "q4_0")
CACHED_BYTES = 1 << 20  # of one matrix: half of a second-level cache for each of two threads
MEMORY_BYTES = 256 << 20
MOST = 16


@dataclass(frozen=True)
class Rate:
    """Products of so many tokens: billions of operations a second on each core, and of bytes of weights on all."""

    weights: str
    tokens: int
    place: str
    operations: float
    gigabytes: float


def matrices(weights: str, width: int, total: int, each: int) -> list[Matrix]:
    """Random matrices of `each` bytes, as many as make `total`."""
    values = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    few = Matrix.quantised(values, weights).data
    rows = each // few[0].nbytes // len(few) * len(few)
    copies = max(1, total // (rows * few[0].nbytes))
    return [Matrix(few.repeat(rows // len(few), 1), weights, width) for _ in range(copies)]


def measure(width: int, threads: int, rounds: int) -> list[Rate]:
    """Every format, number of tokens and place."""
    pool = cpu.Pool(threads)
    found: list[Rate] = []
    for weights in FORMATS:
        places = {
            "cache": matrices(weights, width, CACHED_BYTES, CACHED_BYTES),
            "memory": matrices(weights, width, MEMORY_BYTES, 16 << 20),
        }
        times: dict[tuple[str, int], list[float]] = {}
        for turn in range(-1, rounds):
            for place, made in places.items():
                for tokens in (1, 4, 8, MOST):
                    x = torch.randn(tokens, width)
                    for matrix in made * (1 if place == "memory" else 20):
                        begin = time.perf_counter()
                        cpu.linear(pool, x, matrix)
                        if turn >= 0:
                            times.setdefault((place, tokens), []).append(time.perf_counter() - begin)
        for (place, tokens), seconds in times.items():
            matrix, median = places[place][0], statistics.median(seconds)
            operations = 2 * tokens * matrix.rows * width / median / threads / 1e9
            found.append(Rate(weights, tokens, place, operations, matrix.data.nbytes / median / 1e9))
    return found


def table(rates: list[Rate]) -> Table:
    """Rates by format and number of tokens."""
    made = Table(title="products of a matrix: billions of operations a second on each core")
    for name in ("weights", "tokens", "from memory", "GB/s", "in cache", "16 over 1", "at most"):
        made.add_column(name, justify="right")
    of = {(r.weights, r.tokens, r.place): r for r in rates}
    for weights in FORMATS:
        one = of[weights, 1, "memory"].operations
        for tokens in (1, 4, 8, MOST):
            memory, cache = of[weights, tokens, "memory"], of[weights, tokens, "cache"]
            ratios = (memory.operations / one, cache.operations / one) if tokens == MOST else None
            made.add_row(
                weights,
                str(tokens),
                f"{memory.operations:.0f}",
                f"{memory.gigabytes:.1f}",
                f"{cache.operations:.0f}",
                *(f"{ratio:.1f}x" for ratio in ratios or ()),
            )
    return made


def main() -> None:
    """Measure, print, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=2048, help="weights of a row, a multiple of 512")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    rates = measure(arguments.width, arguments.threads, arguments.rounds)
    console = Console(width=120)
    console.print(table(rates))
    console.print(f"{processor_name()}, {arguments.threads} threads, rows of {arguments.width} weights")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(rate) for rate in rates], indent=1) + "\n")


if __name__ == "__main__":
    main()
