"""Are plans' predicted times those that are measured? Two unequal units on one machine, over many budgets.

    python scripts/bench_plans.py [--model DIR] [--json benchmarks/plans.json] [--plot docs/plans.png]

The GPU is a stand-in made of ordinary memory; each unit has one core of its own, to which its threads are pinned, and
one of the two takes a stated number of times as long for everything. The units are measured as `hybrid hardware
--second-device cpu` does, plans are made from these figures, and each plan decodes a short text. The machine should be
idle. Without --model a synthetic one of 1.26 B parameters is made in the cache folder (2.5 GB). Prints Markdown;
progress goes to the error stream. --redraw shows an earlier result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.command import tell
from peers.models import making_key
from plans.truth import Measured, Scenario, figures, measure, plans, table
from synthetic.directory import write_directory
from synthetic.shape import PRESETS
from synthetic.weights import PlantedWeights

from hybrid.cache import cache_directory
from hybrid.runtime.processor import processor_name
from hybrid.store.files import ModelFiles
from profiler.artifacts import atomic_directory, format_size, write_atomic
from profiler.hardware import Hardware

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 0.9, 1.2)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model directory with a profile")
    parser.add_argument("--gpu", type=float, default=3.0, help="the stand-in takes so many times as long")
    parser.add_argument(
        "--cpu", type=float, default=4.0, help="in the other scenario the CPU takes so many times as long"
    )
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that measuring the machine takes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="picture to draw; needs matplotlib")
    parser.add_argument("--redraw", type=Path, metavar="JSON", help="print and draw an earlier result")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the machine, and then every plan of both scenarios."""
    model = args.model or synthetic_model()
    weight_format = ModelFiles.open_files(model).weight_format
    first, second = sorted(os.sched_getaffinity(0))[:2]
    cores = {"gpu": (first,), "cpu": (second,)}
    machines: dict[tuple[tuple[str, float], ...], Hardware] = {}
    results: list[Measured] = []
    scenarios = (
        Scenario(f"stand-in {args.gpu:g} times slower, most impact", {"gpu": args.gpu}, "impact"),
        Scenario(f"CPU {args.cpu:g} times slower, least time", {"cpu": args.cpu}, "latency"),
    )
    for scenario in scenarios:
        key = tuple(scenario.slowdown.items())
        if key not in machines:
            tell(f"measuring the machine: {scenario.name}")
            machines[key] = figures(scenario, weight_format, cores, args.scale)
        for plan in plans(model, machines[key], scenario, SHARES, args.tokens):
            results.append(measure(model, plan, scenario, cores, args.tokens, args.rounds))
            tell(table(results[-1:], format_size)[-1])
    hardware = [{"slowdown": dict(key), **asdict(machine)} for key, machine in machines.items()]
    shown = [asdict(result) for result in results]
    return {"processor": processor_name(), "model": model.name, "hardware": hardware, "results": shown}


def synthetic_model() -> Path:
    """A model directory of 1.26 B parameters with planted counts and predictors, made when it is missing."""
    path = cache_directory() / "plans" / f"llama-1b-f16-{making_key(PRESETS['llama-1b'])}"
    if not path.exists():
        tell(f"making {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(path, "make a model to measure") as (partial, _):
            write_directory(partial, PlantedWeights(PRESETS["llama-1b"]), "f16", lambda stage, done, total: None)
    return path


def lines(body: dict[str, Any]) -> list[str]:
    """The result in Markdown."""
    results = [Measured(**one) for one in body["results"]]
    errors = sorted(abs(one.error) for one in results)
    within = sum(error <= 0.2 for error in errors)
    span = max(one.measured for one in results) / min(one.measured for one in results)
    return [
        *table(results, format_size),
        "",
        f"{within} of {len(results)} within 20 %, median {statistics.median(errors):.1%}, worst {errors[-1]:.0%}; "
        f"measured times vary by {span:.1f}x ({body['processor']}, {body['model']}).",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or show an earlier result."""
    args = parse(arguments)
    body = json.loads(args.redraw.read_text()) if args.redraw else run(args)
    if args.json is not None:
        write_atomic(args.json, (json.dumps(body, indent=1) + "\n").encode())
    print("\n".join(lines(body)))
    if args.plot is not None:
        from plans.picture import draw  # matplotlib is optional

        draw([Measured(**one) for one in body["results"]], args.plot)


if __name__ == "__main__":
    main()
