"""Show that processes share the pages of a model: RSS and PSS of its mapped files, with one process and with two.

    python scripts/measure_sharing.py demo

PSS counts a page that n processes map as 1/n in each. Two processes that share everything have half the model each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from hybrid.runtime.memory import ProcessMemory, process_memory
from hybrid.stages.opening import resolve
from profiler.artifacts import format_size

# One token after a prompt of one, timed once all is imported. The pages stay as they are until the process is told to
# end.
READER = """
import json, sys, time
from hybrid.runtime.sampler import SamplingParams
from hybrid.runtime.sequence import Sequence
from hybrid.stages.opening import open_engine
path, mode, mmap = sys.argv[1:]
began = time.perf_counter()
with open_engine(path, mode=mode, mmap=mmap == "mmap") as engine:
    opened = time.perf_counter()
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    for _ in engine.run([Sequence([1], params, engine.tokenizer)]):
        pass
    ended = time.perf_counter()
    print(json.dumps([opened - began, ended - began]), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Reader:
    """A process that has a model open and has computed one token, and the seconds from the start of opening to both."""

    pid: int
    model: Path
    open_seconds: float
    first_token_seconds: float

    def mapped(self) -> tuple[int, int]:
        """RSS and PSS, in bytes, of the model's files in the process."""
        maps = [
            m for m in psutil.Process(self.pid).memory_maps(grouped=True) if Path(m.path).is_relative_to(self.model)
        ]
        return sum(m.rss for m in maps), sum(m.pss for m in maps)

    def memory(self) -> ProcessMemory:
        """All of the process."""
        return process_memory(self.pid)


@contextlib.contextmanager
def reader(model: Path, mode: str = "dense", mmap: bool = True) -> Iterator[Reader]:
    """Open a model, of which `model` is the resolved path, in a fresh process. In `dense` mode all rows are touched."""
    command = [sys.executable, "-c", READER, str(model), mode, "mmap" if mmap else "no-mmap"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"a process could not open {model}")
            yield Reader(process.pid, model, *json.loads(line))
        finally:
            process.terminate()


def measure(model: Path, processes: int = 2) -> list[list[tuple[int, int]]]:
    """For one process, two and so on: the RSS and PSS of each."""
    steps = []
    with contextlib.ExitStack() as stack:
        started: list[Reader] = []
        for _ in range(processes):
            started.append(stack.enter_context(reader(model)))
            steps.append([process.mapped() for process in started])
    return steps


def main() -> None:
    """Measure, print a line per process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory, or demo")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    steps = measure(resolve(args.model).resolve(), args.processes)
    if args.json:
        print(json.dumps([[{"rss": rss, "pss": pss} for rss, pss in step] for step in steps]))
        return
    for step in steps:
        each = "; ".join(f"RSS {format_size(rss)}, PSS {format_size(pss)}" for rss, pss in step)
        print(f"processes: {len(step)}; {each}; together PSS {format_size(sum(pss for _, pss in step))}")


if __name__ == "__main__":
    main()
