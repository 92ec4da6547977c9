"""Requests together: through `LLM.generate`, beside a long prompt, over HTTP, and to a peer's server.

    python scripts/bench_serving.py [--formats f16,q8_0,q4_0] [--parts batching,latency,http] [--out FILE]

batching: generated tokens per second of `LLM.generate` by requests at once, prompts included and without, with the
milliseconds of native operators behind each token. latency: times between two tokens of requests that decode, alone and
while a prompt of --long tokens is read beside them. http: the same requests through `LLM.generate`, over HTTP to
`hybrid serve`, and over HTTP to llama_cpp.server with the same weights, in turn; --peer-python is an interpreter with
`llama-cpp-python[server]`, without one there is no peer. Servers are processes of their own on this machine's cores,
and so is the client, which is this program. Prompts are random, never the same twice; texts are greedy, of full length.

Models are those of bench_peers.py, made when they are missing; or --model DIR measures another model directory, without
a peer. --out is read first: what is measured replaces that part of that format, so parts may be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers.command import explained, tell
from peers.models import model_pair
from serving.client import LoadError
from serving.http import over_http
from serving.latency import latency
from serving.library import Settings, batching
from synthetic.shape import PRESETS, Shape

from hybrid.cache import cache_directory
from hybrid.ops import cpu
from hybrid.runtime.processor import processor_name
from hybrid.stages.opening import resolve
from profiler.artifacts import UserError, write_atomic

PARTS = ("batching", "latency", "http")
FORMATS = ("f16", "q8_0", "q4_0")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="llama-1b", help="shape (default llama-1b)")
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--model", help="a model directory in the place of synthetic ones, or demo")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--modes", default="predicted", help="of batching; latency and http take the first")
    parser.add_argument(
        "--requests", default="1,4,8,16", help="at once, of batching; http takes the first and the last"
    )
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt (default 16)")
    parser.add_argument("--tokens", type=int, default=96, help="generated for each (default 96)")
    parser.add_argument("--http-tokens", type=int, default=48, help="the same over HTTP (default 48)")
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long prompt (default 2000)")
    parser.add_argument("--decoding", type=int, default=4, help="requests beside it (default 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", help="interpreter that has llama_cpp.server")
    parser.add_argument("--out", type=Path, default=Path("build/bench-serving.json"))
    args = parser.parse_args(arguments)
    args.formats, args.parts, args.modes = args.formats.split(","), args.parts.split(","), args.modes.split(",")
    for chosen, known in ((args.formats, FORMATS), (args.parts, PARTS)):
        if wrong := set(chosen) - set(known):
            parser.error(f"{', '.join(sorted(wrong))} is not known; known are {', '.join(known)}")
    try:
        args.requests = sorted({int(count) for count in args.requests.split(",")})
    except ValueError:
        parser.error("--requests is a list of numbers such as 1,4,8,16")
    if (
        min(*args.requests, args.prompt - 7, args.tokens, args.http_tokens, args.rounds, args.threads, args.decoding)
        < 1
    ):
        parser.error("requests, tokens, rounds, threads and requests beside are at least 1, prompts at least 8")
    return args


def models(args: argparse.Namespace) -> dict[str, tuple[Path, Path | None]]:
    """Model directories, and files of the peer with the same weights, by format."""
    if args.model is not None:
        return {Path(args.model).name: (resolve(args.model), None)}
    cache, shape = cache_directory() / "peers", Shape(**PRESETS[args.preset])
    pairs = {name: model_pair(cache, args.preset, shape, name, tell) for name in args.formats}
    return {name: (pair.directory, pair.gguf) for name, pair in pairs.items()}


def measure(part: str, path: Path, gguf: Path | None, args: argparse.Namespace) -> Any:
    """One part of one format's result."""
    mode = args.modes[0]
    if part == "latency":
        return latency(path, mode, args.decoding, args.long, args.rounds, args.threads, tell)
    if part == "batching":
        settings = Settings(args.prompt, args.tokens, args.rounds, args.threads)
        return {mode: batching(path, mode, args.requests, settings, tell) for mode in args.modes}
    settings = Settings(args.prompt, args.http_tokens, args.rounds, args.threads)
    clients = sorted({args.requests[0], args.requests[-1]})
    return over_http(path, mode, gguf if args.peer_python else None, args.peer_python or "", clients, settings, tell)


def run(args: argparse.Namespace) -> None:
    """Measure what was asked for, and write the result after each part."""
    torch.set_num_threads(1)  # the engine's threads are its own
    body: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (path, gguf) in models(args).items():
        for part in args.parts:
            tell(f"{name}: {part}")
            found = measure(part, path, gguf, args)
            of = body.setdefault(name, {})
            of[part] = {**of.get(part, {}), **found} if part == "batching" else found
            body["machine"] = machine(args)
            write_atomic(args.out, json.dumps(body, indent=1).encode() + b"\n")


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What was measured on, and how."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {
        "processor": processor_name(),
        "isa": cpu.isa(),
        "python": platform.python_version(),
        "shape": asdict(Shape(**PRESETS[args.preset])) if args.model is None else None,
        "options": {name: options[name] for name in options if name not in ("peer_python", "out")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run; say what is wrong in one line."""
    args = parse(arguments)
    with explained("bench_serving", UserError, LoadError, OSError):
        run(args)


if __name__ == "__main__":
    main()
