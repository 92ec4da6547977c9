"""The engine against llama.cpp on the CPU: same weights, same threads, same tokens of context, in turn, in one run.

    python scripts/bench_peers.py [--preset llama-1b] [--formats f16,q8_0,q4_0] [--modes predicted,exact,dense]

Synthetic models with planted sparsity (scripts/make_synthetic.py) are kept in the cache folder (HYBRID_CACHE, else the
user's). llama.cpp runs through llama-cpp-python (`pip install llama-cpp-python`, or --peer-python for an interpreter
that has it) in the best of its settings; its `llama_decode` alone is timed, and whole steps of the engine. Decoding is
greedy after a short prompt. llama.cpp computes every neuron, with SiLU, whatever the model's activation is.

The floor is the time in which memory, at the best bandwidth measured in the same run, gives the bytes that a token
needs (scripts/peers/floor.py). Where memory is shared with other machines its bandwidth comes and goes by half: "then"
is the share of what memory gave just before and after. --out holds, per format, `{"predicted": {"ratio", "floor_share",
...}, "exact": {...}, "prefill": {...}, "llama.cpp": {...}}`; ratios are medians over rounds of this engine's tokens/s
over llama.cpp's. A mode's "operators" and "interpreter_share" are shares of the time of its decode steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.command import explained, tell
from peers.floor import Bandwidth, floor_bytes
from peers.models import Pair, model_pair
from peers.rounds import Contender, Options, measure
from rich.console import Console
from rich.table import Table
from synthetic.shape import PRESETS, Shape

from hybrid.cache import cache_directory
from hybrid.runtime.processor import processor_name
from hybrid.stages.peers.protocol import WorkerError
from profiler.artifacts import UserError, write_atomic

PEER = "llama.cpp"
MODES = ("predicted", "exact", "dense")
FORMATS = ("f16", "bf16", "q8_0", "q4_0")


def figures(contender: Contender, peer: Contender, needed: float, bandwidth: float, options: Options) -> dict[str, Any]:
    """What is said of a contender. needed: bytes per token; bandwidth: bytes per second."""
    speed = statistics.median(contender.decode)
    return {
        "ratio": ratio(contender.decode, peer.decode),
        "floor_share": speed * needed / bandwidth,
        "floor_share_of_the_moment": statistics.median(
            tokens * needed / then for tokens, then in zip(contender.decode, contender.bandwidth, strict=True)
        ),
        "tokens_per_second": speed,
        "best_tokens_per_second": max(contender.decode),
        "bytes_per_token": needed,
        "gigabytes_per_second": speed * needed / 1e9,
        "prefill_tokens_per_second": statistics.median(contender.prefill),
        "prefill_ratio": ratio(contender.prefill, peer.prefill),
        **{k: v for k, v in asdict(contender).items() if v not in (None, [])},
        **time_shares(contender),
    }


def time_shares(contender: Contender) -> dict[str, Any]:
    """Medians over the rounds of what operators and the interpreter take of a decode step; empty for the peer."""
    if not contender.operators:
        return {}
    operators = {kind: statistics.median(r[kind] for r in contender.operators) for kind in contender.operators[0]}
    return {"operators": operators, "interpreter_share": statistics.median(contender.interpreter_share)}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of one speed over the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def results(
    pair: Pair, shape: Shape, peer: Contender, engines: dict[str, Contender], bandwidth: float, options: Options
) -> dict[str, Any]:
    """One format's part of the result."""
    planted = 1 - shape.sparsity

    def needed(mode: str, contender: Contender) -> float:
        # Rounded gates fire a little less or more often than planted: fewer rows lower the floor, more do not raise it.
        active = planted if contender.active is None else min(planted, contender.active)
        return floor_bytes(pair.directory, mode, active, options.mean_context)

    body = {
        mode: figures(contender, peer, needed(mode, contender), bandwidth, options)
        for mode, contender in engines.items()
    }
    first = next(iter(body.values()))
    body["prefill"] = {
        "ratio": first["prefill_ratio"],
        "tokens_per_second": first["prefill_tokens_per_second"],
        "mode": next(iter(engines)),
        "tokens": options.prefill,
    }
    body[PEER] = figures(peer, peer, needed("dense", peer), bandwidth, options)
    return body


def show(console: Console, body: dict[str, dict[str, Any]], title: str) -> None:
    """The table for people."""
    table = Table(title=title)
    for name in ("format", "contender"):
        table.add_column(name)
    for name in (
        "tokens/s",
        f"x {PEER}",
        "MB needed",
        "GB/s",
        "of floor",
        "then",
        "active",
        "prefill tokens/s",
        f"x {PEER} ",
    ):
        table.add_column(name, justify="right")
    for weight_format, contenders in body.items():
        for name, row in contenders.items():
            if name == "prefill":
                continue
            table.add_row(
                weight_format,
                name,
                f"{row['tokens_per_second']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['bytes_per_token'] / 1e6:.0f}",
                f"{row['gigabytes_per_second']:.1f}",
                f"{row['floor_share']:.0%}",
                f"{row['floor_share_of_the_moment']:.0%}",
                f"{row['active']:.1%}" if "active" in row else "",
                f"{row['prefill_tokens_per_second']:.0f}",
                f"{row['prefill_ratio']:.2f}",
            )
        table.add_section()
    console.print(table)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Options]:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="llama-1b", help="shape (default llama-1b)")
    parser.add_argument("--formats", default="f16,q8_0,q4_0", help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--modes", default=",".join(MODES), help="the engine's modes; the first one's prefill counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=64, help="decoded in each round (default 64)")
    parser.add_argument("--prompt", type=int, default=16, help="tokens before them (default 16)")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt that is timed (default 512)")
    parser.add_argument("--isa", help="instruction set of this engine, as HYBRID_ISA names it")
    parser.add_argument("--overshoot", type=float, default=1.0, help="rows predictors name over rows that fire")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama_cpp")
    parser.add_argument("--cache", type=Path, help="folder for models (default: peers in the cache folder)")
    parser.add_argument("--out", type=Path, default=Path("build/bench-peers.json"))
    args = parser.parse_args(arguments)
    args.formats, modes = args.formats.split(","), args.modes.split(",")
    for chosen, known in ((args.formats, FORMATS), (modes, MODES)):
        if wrong := set(chosen) - set(known):
            parser.error(f"{', '.join(sorted(wrong))} is not known; known are {', '.join(known)}")
    if min(args.rounds, args.threads, args.tokens) < 1 or min(args.prompt, args.prefill) < 2:
        parser.error("rounds, threads and tokens are at least 1, prompts at least 2")
    options = Options(
        modes, args.rounds, args.threads, args.tokens, args.prompt, args.prefill, args.peer_python, args.isa
    )
    return args, options


def run(args: argparse.Namespace, options: Options) -> None:
    """Measure every format, print the table, write the result after each."""
    shape = Shape(**{**PRESETS[args.preset], "overshoot": args.overshoot})
    cache = args.cache or cache_directory() / "peers"
    bandwidth, measured = Bandwidth(options.threads), {}
    for weight_format in args.formats:
        tell(f"{args.preset}, {weight_format}")
        pair = model_pair(cache, args.preset, shape, weight_format, tell)
        measured[weight_format] = (pair, *measure(pair, options, bandwidth, tell))
        body = {
            name: results(pair, shape, peer, engines, bandwidth.best, options)
            for name, (pair, peer, engines) in measured.items()
        }
        machine = {
            "processor": processor_name(),
            "bandwidth_gigabytes_per_second": bandwidth.best / 1e9,
            "load": os.getloadavg(),
            "python": platform.python_version(),
            "preset": args.preset,
            "shape": asdict(shape),
            "options": asdict(options),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps({**body, "machine": machine}, indent=1).encode() + b"\n")
    isa = next(iter(measured[args.formats[0]][2].values())).about["isa"]
    title = (
        f"{args.preset}, {options.threads} threads, {isa}, {options.rounds} rounds of {options.tokens} tokens; "
        f"memory {bandwidth.best / 1e9:.1f} GB/s"
    )
    show(Console(width=None if sys.stdout.isatty() else 140), body, title)


def main() -> None:
    """Run; say what is wrong in one line; leave nothing half made on Ctrl-C."""
    args, options = parse()
    with explained("bench_peers", UserError, WorkerError, OSError):
        run(args, options)


if __name__ == "__main__":
    main()
