"""How decoding speed grows: with sparsity, with context, with batch, and with what predictors name in vain.

    python scripts/bench_growth.py [--preset llama-1b] [--layers 6] [--json FILE] [--plot docs/growth.png]

Synthetic models with planted sparsity (scripts/make_synthetic.py) of the preset's layers, but fewer of them and with a
small vocabulary: what a layer costs is the same, and the models stay far larger than the caches. They are kept in the
cache folder (HYBRID_CACHE, else the user's; 7 GB). Cases take turns in rounds; whole steps of the engine are timed,
sampling included. A speed stands beside its share of the floor: the bytes that a step needs over the best bandwidth of
memory measured in the same run (scripts/peers/floor.py).

    sparsity   share of neurons silent for a token; llama.cpp once for each format, where --peer-python has it
    context    tokens already in the KV cache, put there by a prefill, in f16
    batch      sequences decoded together, each with a short context
    overshoot  rows that predictors name over rows that fire

Prints Markdown; progress goes to the error stream. --redraw prints and draws an earlier result again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from growth.cases import MODES, PROMPT, Case, Settings, measure
from growth.models import Models
from growth.tables import markdown
from peers.command import explained, tell
from peers.floor import Bandwidth, floor_bytes
from peers.rounds import Options
from peers.rounds import measure as measure_with_peer
from synthetic.shape import PRESETS, Shape

from hybrid.cache import cache_directory
from hybrid.ops.cpu import MAX_TOKENS
from hybrid.runtime.processor import processor_name
from hybrid.stages.peers.protocol import WorkerError
from profiler.artifacts import UserError, write_atomic

TABLES = ("sparsity", "context", "batch", "overshoot")
FORMATS = ("f16", "bf16", "q8_0", "q4_0")
VOCABULARY = 4096  # the head is then as small a share of the bytes in six layers as 32,000 tokens' in all of a 1B model
LONGEST = 1 << 17  # positions that the models know


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """A list with commas."""

    def listed(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    listed.__name__ = f"list of {kind.__name__}"
    return listed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="llama-1b", help="shape (default llama-1b)")
    parser.add_argument("--layers", type=int, default=6, help="of that shape (default 6)")
    parser.add_argument("--tables", type=numbers(str), default=list(TABLES), help=f"some of {','.join(TABLES)}")
    parser.add_argument("--formats", type=numbers(str), default=["q4_0", "f16"], help="the first for all tables")
    parser.add_argument("--sparsities", type=numbers(float), default=[0, 0.5, 0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--sparsity", type=float, default=0.9, help="of the other tables (default 0.9)")
    parser.add_argument("--contexts", type=numbers(int), default=[128, 512, 2048, 4096, 8192])
    parser.add_argument("--batches", type=numbers(int), default=[1, 2, 4, 8, 16])
    parser.add_argument("--overshoots", type=numbers(float), default=[1, 1.5, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded by a sequence in each round (default 32)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", help="interpreter that has llama_cpp (default: without llama.cpp)")
    parser.add_argument("--cache", type=Path, help="folder for models (default: growth in the cache folder)")
    parser.add_argument("--json", type=Path, default=Path("build/bench-growth.json"), help="file for the figures")
    parser.add_argument("--plot", type=Path, help="picture to draw; needs matplotlib")
    parser.add_argument("--redraw", type=Path, help="an earlier run's --json, instead of measuring")
    args = parser.parse_args(arguments)
    for chosen, known in ((args.tables, TABLES), (args.formats, FORMATS)):
        if wrong := set(chosen) - set(known):
            parser.error(f"{', '.join(sorted(wrong))} is not known; known are {', '.join(known)}")
    if min(args.layers, args.rounds, args.threads, args.tokens) < 1:
        parser.error("layers, rounds, threads and tokens are at least 1")
    if not PROMPT < min(args.contexts) <= max(args.contexts) < LONGEST - args.tokens:
        parser.error(f"contexts are more than {PROMPT} tokens and fewer than {LONGEST - args.tokens}")
    if not 1 <= min(args.batches) <= max(args.batches) <= MAX_TOKENS:
        parser.error(f"batches are 1 to {MAX_TOKENS} sequences")
    if not all(0 <= sparsity < 1 for sparsity in (*args.sparsities, args.sparsity)):
        parser.error("a sparsity is a share, from 0 to less than 1")
    return args


def cases_of(table: str, args: argparse.Namespace) -> list[Case]:
    """The cases of a table. Dense speed does not depend on sparsity and is measured at one."""
    first, at = args.formats[0], args.sparsity
    if table == "sparsity":
        sparse = [Case(f, mode, s) for f in args.formats for s in args.sparsities for mode in MODES if mode != "dense"]
        return [*sparse, *(Case(f, "dense", args.sparsities[-1]) for f in args.formats)]
    if table == "context":
        return [Case(first, mode, at, context=context) for context in args.contexts for mode in MODES]
    if table == "batch":
        return [Case(first, mode, at, batch=batch) for batch in args.batches for mode in MODES]
    return [Case(first, "predicted", at, overshoot=overshoot) for overshoot in args.overshoots]


def measure_peer(
    weight_format: str, args: argparse.Namespace, models: Models, settings: Settings, bandwidth: Bandwidth
) -> dict[str, Any]:
    """llama.cpp on the same shape, in the best of its settings."""
    options = Options(
        modes=(),
        rounds=settings.rounds,
        threads=settings.threads,
        tokens=settings.tokens,
        prompt=PROMPT,
        prefill=4 * PROMPT,
        peer_python=args.peer_python,
        isa=None,
    )
    pair = models.pair(args.sparsity, weight_format)
    peer, _ = measure_with_peer(pair, options, bandwidth, lambda line: tell(f"  {line}"))
    speed, needed = statistics.median(peer.decode), floor_bytes(pair.directory, "dense", 1.0, options.mean_context)
    return {
        "tokens_per_second": speed,
        "bytes_per_step": needed,
        "gigabytes_per_second": speed * needed / 1e9,
        "rounds": peer.decode,
        "disturbance": statistics.median(peer.disturbance),
        "about": peer.about,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure table after table, llama.cpp first."""
    sizes = {**PRESETS[args.preset], "layers": args.layers, "vocab": VOCABULARY, "context": LONGEST}
    shape = Shape(**sizes)
    models = Models(args.cache or cache_directory() / "growth", f"{args.preset}-{args.layers}", shape, tell)
    settings = Settings(args.rounds, args.tokens, args.threads)
    bandwidth, measured, peer, isa = Bandwidth(args.threads), {}, {}, ""
    if args.peer_python and "sparsity" in args.tables:
        for weight_format in args.formats:
            tell(f"llama.cpp, {weight_format}")
            peer[weight_format] = measure_peer(weight_format, args, models, settings, bandwidth)
    for table in args.tables:
        tell(f"{table}: {len(cases := cases_of(table, args))} cases")
        measured[table], isa = measure(cases, models, settings, bandwidth, tell)
    for row in peer.values():
        row["floor_share"] = row["gigabytes_per_second"] * 1e9 / bandwidth.best
    return {
        "preset": args.preset,
        "shape": asdict(replace(shape, sparsity=args.sparsity)),
        "settings": asdict(settings),
        "machine": {
            "processor": processor_name(),
            "isa": isa,
            "bandwidth_gigabytes_per_second": bandwidth.best / 1e9,
            "load": os.getloadavg(),
            "python": platform.python_version(),
        },
        "tables": {
            table: [figures.row(models, settings, bandwidth.best) for figures in rows]
            for table, rows in measured.items()
        },
        "peer": peer,
    }


def present(body: dict[str, Any], plot: Path | None) -> None:
    """Draw where a picture is wanted, and print."""
    if plot is not None:
        from growth.picture import draw  # matplotlib is optional

        draw(body, plot)
    print(markdown(body))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run; say what is wrong in one line; leave nothing half made on Ctrl-C."""
    args = parse(None if arguments is None else list(arguments))
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("bench_growth: --plot needs matplotlib; install it with: pip install -e '.[bench]'")
    with explained("bench_growth", UserError, WorkerError, OSError, ValueError):
        if args.redraw:
            body = json.loads(args.redraw.read_text())
        else:
            body = run(args)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.json, json.dumps(body, indent=1).encode() + b"\n")
        present(body, args.plot)


if __name__ == "__main__":
    main()
