"""What asking for named rows early brings: where a model is larger than memory, and at most of a processor's caches.

    sudo python scripts/bench_prefetch.py DIR --memory 1900MiB [--tokens 40] [--rounds 3] [--threads 2] [--json FILE]
    python scripts/bench_prefetch.py --show FILE

DIR is a profiled model directory (`scripts/make_synthetic.py --preset llama-1b --directory DIR`) on the drive in
question. Each figure is of a fresh process in a control group of so much memory (version 1 or 2, so this needs root):
after a prompt and --warm tokens, the median of --tokens more. Rows are read when they are touched; or asked for when
they are named, by predictors that read their own layer's state; or asked for a layer early. For the last the predictors
are made to read the state of the layer before: what they then name is not what fires, but as much of it, spread alike.

The table of caches is a bound: rows that were just read are in the caches, as if they had been brought there in time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hybrid.ops import cpu
from hybrid.ops.bank import RowBank
from hybrid.reports import table
from hybrid.runtime.processor import processor_name
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine, resolve
from profiler.artifacts import UserError, format_size, parse_size, write_atomic
from profiler.predictor_file import read_predictors, write_predictors

VARIANTS = {"touched": "read when touched", "named": "asked for when named", "ahead": "asked for a layer early"}
GROUPS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
PROMPT = list(range(100, 116))
CACHE_ROWS = (0.01, 0.03, 0.05, 0.1, 0.2)  # shares of a layer's rows
FLUSHED = 64 << 20  # floats that are read so that rows are in no cache
Figures = dict[str, Any]


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """The file that a process writes its number to, to be held to so many bytes.

    Raises:
        UserError: groups cannot be made here.
    """
    for root, name in GROUPS:
        folder = Path(root) / f"hybrid-bench-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / name).write_text(str(limit))
                yield folder / "cgroup.procs"
            finally:
                folder.rmdir()
            return
    raise UserError("no control group of memory can be made here; run this as root, outside of a container")


def look_ahead(model: Path, folder: Path) -> Path:
    """The model with predictors that read the layer before's state; its files are linked, not copied."""
    copy = shutil.copytree(model, folder / "look-ahead", copy_function=os.link)
    path = copy / "predictors" / "default.safetensors"
    found = read_predictors(path)
    path.unlink()
    first, *others = found.layers
    layers = (first, *(replace(layer, reads="previous_ffn_input") for layer in others))
    write_predictors(path, replace(found, layers=layers))
    return copy


def decode(model: Path, asks: bool, arguments: argparse.Namespace) -> Figures:
    """Figures of decoding, in the process that calls."""
    for file in model.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # whoever reads it pays for it
    options = {"mode": "predicted", "threads": arguments.threads, "context": 512, "prefetch": asks}
    with open_engine(model, **options) as engine:
        sequence = Sequence(PROMPT, SamplingParams(max_tokens=10**6, ignore_eos=True), engine.tokenizer)
        steps, seconds = engine.run([sequence]), []
        for _ in range(1 + arguments.warm):
            next(steps)
        before = usage()
        for _ in range(arguments.tokens):
            began = time.perf_counter()
            next(steps)
            seconds.append(time.perf_counter() - began)
        read, faults = (now - then for now, then in zip(usage(), before, strict=True))
        steps.close()
    return {
        "ms": statistics.median(seconds) * 1000,
        "mib": read / 2**20 / arguments.tokens,
        "faults": faults / arguments.tokens,
    }


def usage() -> tuple[int, int]:
    """Bytes that this process had drives read, and pages that it waited for."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_inblock * 512, used.ru_majflt


def run(model: Path, variant: str, group: Path, arguments: argparse.Namespace) -> Figures:
    """Figures of a fresh process in the group."""
    command = [sys.executable, __file__, str(model), "--worker", variant, "--memory", "1B"]
    for name in ("tokens", "warm", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    join = f'echo $$ > "{group}" && exec "$@"'
    done = subprocess.run(["sh", "-c", join, "sh", *command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def caches(model: Path) -> list[list[str]]:
    """Microseconds of named rows of one layer on one thread, from memory and from the caches."""
    with open_engine(model, mode="dense", threads=1) as engine:
        bank, pool = engine.machine.banks[0], engine.machine.units["cpu"].pool
        rows = RowBank(bank.memory[0].clone(), bank.weight_format, bank.hidden, bank.gated, bank.activation)
    assert pool is not None
    x, other, found = torch.randn(1, rows.hidden), torch.randn(FLUSHED), []
    for share in CACHE_ROWS:
        named, times = torch.rand(1, len(rows)) < share, ([], [])  # type: tuple[list[float], list[float]]
        for _ in range(20):
            other.sum()
            for kind in times:
                began = time.perf_counter()
                cpu.sparse_ffn(pool, rows, x, named, False)
                kind.append(time.perf_counter() - began)
        far, near = (statistics.median(kind) * 1e6 for kind in times)
        size = int(named.sum()) * rows.row_bytes / 2**20
        found.append([f"{share:.0%}", f"{size:.1f}", f"{far:.0f}", f"{near:.0f}", f"{1 - near / far:.0%}"])
    return found


def lines(body: Figures) -> list[str]:
    """Both tables, and what they are of."""
    about, found = body["about"], body["flash"]
    rows = [
        [VARIANTS[name], *(f"{statistics.median(f[key] for f in figures):.1f}" for key in ("ms", "mib", "faults"))]
        for name, figures in found.items()
    ]
    return [
        *table(["rows of neurons", "ms a token", "MiB read a token", "waits for pages a token"], rows),
        "",
        f"{about['model']}, {format_size(about['size'])} in {format_size(about['memory'])}; {about['threads']} threads "
        f"of {about['processor']}; medians of {len(found['touched'])} rounds of {about['tokens']} tokens",
        "",
        *table(["rows named", "MiB", "us from memory", "us from caches", "at most saved"], body["caches"]),
    ]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="DIR", nargs="?")
    parser.add_argument("--memory", type=parse_size, help="of the control group")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the tables of figures that were measured before"
    )
    arguments = parser.parse_args()
    if arguments.show:
        print("\n".join(lines(json.loads(arguments.show.read_text()))))
        return
    if arguments.model is None or arguments.memory is None:
        parser.error("a model and --memory are needed, or --show")
    model = resolve(arguments.model)
    if arguments.worker:
        print(json.dumps(decode(model, arguments.worker != "touched", arguments)))
        return
    found: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
    with memory_group(arguments.memory) as group, tempfile.TemporaryDirectory(dir=model.parent) as folder:
        models = {"touched": model, "named": model, "ahead": look_ahead(model, Path(folder))}
        for turn in range(arguments.rounds):
            for name, variant in models.items():
                found[name].append(run(variant, name, group, arguments))
                print(f"round {turn + 1}, {VARIANTS[name]}: {found[name][-1]['ms']:.1f} ms a token", file=sys.stderr)
    about = {name: getattr(arguments, name) for name in ("memory", "tokens", "threads")}
    about |= {"model": model.name, "processor": processor_name()}
    about["size"] = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
    body = {"about": about, "flash": found, "caches": caches(model)}
    print("\n".join(lines(body)))
    if arguments.json:
        write_atomic(arguments.json, json.dumps(body, indent=1).encode())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench_prefetch: {error}")
