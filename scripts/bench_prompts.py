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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hybrid.runtime.engine import Engine
from hybrid.runtime.options import EngineOptions
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence as TokenSequence
from hybrid.runtime.sizes import PREFILL_TOKENS
from hybrid.stages.opening import choose_mode, find_predictors, resolve
from hybrid.store.directory import ModelDirectory
from profiler.artifacts import UserError, write_atomic

FIRST_ID = 3  # below are the special tokens
Rates = dict[str, dict[int, float]]  # tokens/s by way and length


def prompt_rate(engine: Engine, ids: Sequence[int]) -> float:
    """Tokens per second of a prompt, until the logits of its last token."""
    sequence = TokenSequence(list(ids), SamplingParams(max_tokens=1, ignore_eos=True), engine.tokenizer)
    began = time.perf_counter()
    for _ in engine.run([sequence]):
        pass
    return len(ids) / (time.perf_counter() - began)


def open_for(path: Path, mode: str, context: int, threads: int | None, prefill_tokens: int | None) -> Engine:
    """The model in host memory, its prompts computed by so many tokens at once (None: natively)."""
    directory = ModelDirectory.open(resolve(path))
    predictors = find_predictors(directory, "default")
    chosen = choose_mode(mode, directory, predictors)
    return Engine(
        directory,
        EngineOptions(
            chosen,
            predictors=predictors if chosen == "predicted" else None,
            context=context,
            threads=threads,
            prefill_tokens=prefill_tokens,
        ),
    )


def measure(path: Path, mode: str, lengths: Sequence[int], rounds: int, threads: int | None) -> Rates:
    """The best rate of each way and length."""
    draw = torch.Generator().manual_seed(0)
    longest = max(lengths)
    rates: Rates = {"native": {}, "torch": {}}
    with (
        open_for(path, mode, longest + 2, threads, None) as native,
        open_for(path, mode, longest + 2, threads, min(longest, PREFILL_TOKENS)) as by_torch,
    ):
        vocabulary = native.directory.spec.vocab_size
        for _ in range(rounds):
            for length in lengths:
                ids = torch.randint(FIRST_ID, vocabulary, (length,), generator=draw).tolist()
                for name, engine in (("native", native), ("torch", by_torch)):
                    rates[name][length] = max(rates[name].get(length, 0.0), prompt_rate(engine, ids))
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

    table = Table("weights", "mode", *(f"{length} tokens" for length in lengths), "torch from")
    results: list[dict[str, Any]] = []
    for path in options.directories:
        for name in options.modes.split(","):
            torch.set_num_threads(options.threads or torch.get_num_threads())
            rates = measure(path, name, lengths, options.rounds, options.threads)
            weight_format = path.suffix.lstrip(".") or path.name
            cells = [f"{rates['native'][n]:.0f} / {rates['torch'][n]:.0f}" for n in lengths]
            first = crossover(rates)
            table.add_row(weight_format, name, *cells, "never" if first is None else f"{first} tokens")
            results.append({"model": path.name, "mode": name, "tokens_per_second": rates, "crossover": first})
    console = Console(width=100)
    console.print("prompts, tokens/s: native / torch")
    console.print(table)
    if options.json is not None:
        write_atomic(options.json, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"bench_prompts.py: {error}") from error
