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
from pathlib import Path

import psutil

from hybrid.stages.opening import resolve
from profiler.artifacts import format_size

# Dense decoding touches every row, so that all of the model is resident; then the process waits to be measured.
READER = """
import sys
from hybrid import LLM, SamplingParams
with LLM(sys.argv[1], mode="dense", max_sequences=1) as llm:
    llm.generate("def ", SamplingParams(max_tokens=2, ignore_eos=True))
    print("ready", flush=True)
    sys.stdin.read()
"""


def mapped(pid: int, model: Path) -> tuple[int, int]:
    """RSS and PSS, in bytes, of the model's files in one process."""
    maps = [m for m in psutil.Process(pid).memory_maps(grouped=True) if m.path.startswith(str(model))]
    return sum(m.rss for m in maps), sum(m.pss for m in maps)


def measure(model: Path, processes: int = 2) -> list[list[tuple[int, int]]]:
    """For one process, two and so on: the RSS and PSS of each."""
    steps = []
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen[str]] = []
        for _ in range(processes):
            command = [sys.executable, "-c", READER, str(model)]
            reader = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(reader.terminate)
            assert reader.stdout is not None
            if reader.stdout.readline().strip() != "ready":
                raise SystemExit(f"a process could not open {model}")
            started.append(reader)
            steps.append([mapped(p.pid, model) for p in started])
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
