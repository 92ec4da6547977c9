"""Times the native operators on one feed-forward layer against torch, and against the memory's bandwidth.

    python scripts/bench_operators.py [--threads 2] [--active 0.1] [--json FILE]

Several layers' worth of rows take turns, so that no cache holds what is read next; the contenders take turns too, in
rounds, so that a disturbance meets them all. The figures are medians over the rounds.

    native predicted   sparse_ffn over the named rows
    native exact       sparse_ffn over all rows: every gate is read, the rest where the gate is open
    native dense       sparse_ffn with nothing skipped
    torch gather       act(G[i] @ x) * (U[i] @ x) @ D[i], the named rows i gathered from three matrices
    torch dense        the same over all rows, without a gather
    memory, torch      torch.sum over the rows as int64
    memory, numpy      numpy.sum over the same, a slice for each thread

The faster of the last two is the bandwidth that all are held against.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.runtime.cores import usable_cores
from hybrid.runtime.processor import processor_name

console = Console()


@dataclass(frozen=True)
class Layer:
    """The same rows twice: as a bank of records, and as torch's three matrices."""

    bank: RowBank
    gate: torch.Tensor  # [n, hidden]
    up: torch.Tensor
    down: torch.Tensor  # [n, hidden], as the records have it
    named: torch.Tensor  # bool [1, n]
    index: torch.Tensor  # the named rows


@dataclass(frozen=True)
class Result:
    """One contender: milliseconds of a call, the bytes that its result needs, and the rate they make."""

    name: str
    milliseconds: float
    megabytes: float
    gigabytes_per_second: float
    share_of_bandwidth: float


def make_layer(hidden: int, neurons: int, active: float, x: torch.Tensor, seed: int) -> Layer:
    """Rows of which `x` opens exactly the named gates: a gate is +x or -x, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    named = torch.zeros(1, neurons, dtype=torch.bool)
    index = torch.randperm(neurons, generator=generator)[: max(1, round(active * neurons))].sort().values
    named[0, index] = True
    rows = torch.empty(neurons, 3 * hidden, dtype=torch.bfloat16)
    for first in range(0, neurons, 1024):
        block = rows[first : first + 1024]
        block.copy_(torch.randn(block.shape, generator=generator) / hidden**0.5)
        sign = named[0, first : first + 1024, None] * 2.0 - 1
        block[:, :hidden] += (sign * x / x.square().sum() * 8).bfloat16()
    gate, up, down = (rows[:, i * hidden : (i + 1) * hidden].contiguous() for i in range(3))
    return Layer(RowBank(rows, "bf16", hidden, True, "relu"), gate, up, down, named, index)


def torch_ffn(layer: Layer, x: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """The layer in torch's bf16, as a Python prototype would write it."""
    gate, up, down = (m if index is None else m[index] for m in (layer.gate, layer.up, layer.down))
    return (torch.relu(gate @ x) * (up @ x)) @ down


def measure(calls: dict[str, Callable[[int], object]], layers: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; a round runs every call on a few layers in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, rounds):
        for name, call in calls.items():
            for i in range(layers):
                start = time.perf_counter()
                call(i)
                if turn >= 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
            time.sleep(0.005)  # torch's threads spin for a while after their work; they are not to disturb the next
    return {name: statistics.median(values) for name, values in times.items()}


def bench(hidden: int, neurons: int, active: float, layers: int, threads: int, rounds: int) -> list[Result]:
    """Every contender over `layers` layers."""
    torch.set_num_threads(threads)
    pool = cpu.Pool(threads)
    x = torch.randn(1, hidden, generator=torch.Generator().manual_seed(0))
    x16 = x[0].bfloat16()
    made = [make_layer(hidden, neurons, active, x, seed) for seed in range(layers)]
    named = len(made[0].index)
    vector, layer_bytes = 2 * hidden, 3 * 2 * hidden * neurons

    y, counts = cpu.sparse_ffn(pool, made[0].bank, x)
    expected = torch_ffn(made[0], x16, made[0].index).float()
    assert (counts.gated, counts.finished) == (neurons, named), counts
    assert torch.nn.functional.cosine_similarity(y[0], expected, dim=0) > 0.999

    flat = [layer.bank.memory[0].view(-1).view(torch.int64) for layer in made]
    slices = [np.array_split(words.numpy(), threads) for words in flat]
    executor = ThreadPoolExecutor(threads)
    calls: dict[str, tuple[int, Callable[[int], object]]] = {
        "memory, torch": (layer_bytes, lambda i: flat[i].sum()),
        "memory, numpy": (layer_bytes, lambda i: list(executor.map(np.sum, slices[i]))),
        "native predicted": (3 * vector * named, lambda i: cpu.sparse_ffn(pool, made[i].bank, x, made[i].named)),
        "native exact": (
            vector * (neurons + 2 * named),
            lambda i: cpu.sparse_ffn(pool, made[i].bank, x),
        ),
        "native dense": (layer_bytes, lambda i: cpu.sparse_ffn(pool, made[i].bank, x, skip_inactive=False)),
        "torch gather": (3 * vector * named, lambda i: torch_ffn(made[i], x16, made[i].index)),
        "torch dense": (layer_bytes, lambda i: torch_ffn(made[i], x16, None)),
    }
    medians = measure({name: call for name, (_, call) in calls.items()}, layers, rounds)
    rates = {name: size / medians[name] / 1e6 for name, (size, _) in calls.items()}
    bandwidth = max(rates["memory, torch"], rates["memory, numpy"])
    return [
        Result(name, medians[name], size / 1e6, rates[name], rates[name] / bandwidth)
        for name, (size, _) in calls.items()
    ]


def main() -> None:
    """Measure, print a table, and write the figures where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--neurons", type=int, default=11008)
    parser.add_argument("--active", type=float, default=0.1, help="share of rows that are named")
    parser.add_argument("--layers", type=int, default=4, help="layers that take turns, fewer where memory is short")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    layer_bytes = 2 * 3 * 2 * options.hidden * options.neurons  # records and matrices
    layers = max(1, min(options.layers, psutil.virtual_memory().available // 2 // layer_bytes))

    results = bench(options.hidden, options.neurons, options.active, layers, options.threads, options.rounds)
    title = (
        f"hidden {options.hidden}, {options.neurons} rows, {options.active:.0%} active, bf16, 1 token, "
        f"{layers} layers in turn, {options.threads} threads, {cpu.isa()}"
    )
    table = Table("contender", "ms", "MB needed", "GB/s", "of bandwidth", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for r in results:
        table.add_row(
            r.name,
            f"{r.milliseconds:.2f}",
            f"{r.megabytes:.0f}",
            f"{r.gigabytes_per_second:.1f}",
            f"{r.share_of_bandwidth:.0%}",
        )
    console.print(table)
    by_name = {r.name: r.milliseconds for r in results}
    speedup = by_name["torch gather"] / by_name["native predicted"]
    console.print(f"native predicted is {speedup:.1f} times as fast as torch gather")
    if options.json:
        machine = {"processor": processor_name(), "machine": platform.machine(), "torch": torch.__version__}
        body = {
            "options": {k: v for k, v in vars(options).items() if k != "json"} | {"layers": layers},
            "isa": cpu.isa(),
            "machine": machine,
            "results": [asdict(r) for r in results],
            "native_over_torch_gather": speedup,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
