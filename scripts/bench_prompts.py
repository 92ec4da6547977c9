"""Which way a prompt passes faster on this machine: native operators by 16 tokens, or torch's products by up to 256.

    python scripts/bench_prompts.py DIR... [--modes predicted,dense] [--lengths 16,64,256,512] [--json FILE]

Both ways in turn, in one run, on the same random tokens; the best of the rounds of each, because others can only slow a
run down. The crossover is the shortest prompt from which on torch is faster: `EngineOptions.prefill_tokens` asks for
that. Torch widens weights to 32 bits, layer by layer and block by block, and multiplies them with activations that were
rounded as in decoding; a mode's rows are masked, so that it means the same both ways.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hybrid.runtime.cores import usable_cores
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.stages.opening import resolve
from hybrid.stages.peers.engine_worker import ThisEngine
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, write_atomic

FIRST_ID = 3  # below are the special tokens
Rates = dict[str, dict[int, float]]  # tokens/s by way and length


def measure(path: Path, mode: str, lengths: Sequence[int], rounds: int, threads: int, vocabulary: int) -> Rates:
    """The best rate of each way and length, until the logits of a prompt's last token."""
    draw = torch.Generator().manual_seed(0)
    longest = max(lengths)
    ways = {"native": ThisEngine(), "torch": ThisEngine()}
    rates: Rates = {name: dict.fromkeys(lengths, 0.0) for name in ways}
    try:
        for name, engine in ways.items():
            by = None if name == "native" else min(longest, PREFILL_TOKENS)
            engine.open(str(path), threads, longest + 2, mode, prefill_tokens=by)
        for _ in range(rounds):
            for length in lengths:
                ids = torch.randint(FIRST_ID, vocabulary, (length,), generator=draw).tolist()
                for name, engine in ways.items():
                    rates[name][length] = max(rates[name][length], length / engine.prefill(ids)["seconds"])
    finally:
        for engine in ways.values():
            engine.close()
    return rates


def crossover(rates: Rates) -> int | None:
    """The shortest measured prompt from which on torch is faster; None where it never is for the longest."""
    found = None
    for length in sorted(rates["native"], reverse=True):
        if rates["torch"][length] <= rates["native"][length]:
            break
        found = length
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="model directory")
    parser.add_argument("--modes", default="predicted,dense")
    parser.add_argument("--lengths", default="16,64,256,512", help="tokens of prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU; by default one for each performance core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    lengths = [int(length) for length in options.lengths.split(",")]

    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    table = Table("weights", "mode", *(f"{length} tokens" for length in lengths), "torch from")
    results: list[dict[str, Any]] = []
    for path in map(resolve, options.directories):
        with ModelDirectory.open(path) as directory:
            weight_format, vocabulary = directory.weight_format, directory.spec.vocab_size
        for mode in options.modes.split(","):
            rates = measure(path, mode, lengths, options.rounds, threads, vocabulary)
            cells = [f"{rates['native'][n]:.0f} / {rates['torch'][n]:.0f}" for n in lengths]
            first = crossover(rates)
            table.add_row(weight_format, mode, *cells, "never" if first is None else f"{first} tokens")
            results.append({"model": path.name, "mode": mode, "tokens_per_second": rates, "crossover": first})
    console = Console(width=100)
    console.print("prompts, tokens/s: native / torch")
    console.print(table)
    if options.json is not None:
        write_atomic(options.json, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"bench_prompts: {error}") from error
