"""How long placement takes, how well it is proved, and what it gains over caching by frequency: a table per shape.

    python scripts/bench_placement.py --json benchmarks/placement.json

Nothing is run but the solver: times per token are predicted from the figures of a machine that is not here.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from placement.cost import ModelSizes
from placement.formulate import formulate
from placement.frequencies import Frequencies
from placement.greedy import top_k
from placement.plan import Budgets
from placement.planner import Request, hotness, place
from placement.problem import Choice
from profiler.hardware import Hardware, read_hardware

BUDGETS = (5, 15, 25, 35, 50, 65, 80, 95)


@dataclass(frozen=True)
class Shape:
    """What placement needs of a model in 16 bits: widths, heads of keys, and the vocabulary."""

    name: str
    layers: int
    hidden: int
    neurons: int
    kv_width: int
    vocabulary: int
    predictor_rank: int

    def sizes(self, context: int) -> ModelSizes:
        """Bytes of a gated model with a predictor for each layer."""
        attention = 2 * (2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width)
        predictor = 2 * self.predictor_rank * (self.hidden + self.neurons)
        return ModelSizes(
            n_layers=self.layers,
            n_rows=self.neurons,
            row_bytes=3 * 2 * self.hidden,
            gated=True,
            attention_bytes=(attention + 8 * self.hidden,) * self.layers,
            predictor_bytes=(predictor,) * self.layers,
            embeddings_bytes=2 * self.vocabulary * self.hidden,
            head_bytes=2 * self.vocabulary * self.hidden,
            kv_bytes_per_token=2 * 2 * self.kv_width,
            buffer_bytes=256 << 20,
            final_norm_bytes=4 * self.hidden,
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("7b", 32, 4096, 11008, 4096, 32000, 512),
        Shape("mistral-7b", 32, 4096, 14336, 1024, 32000, 512),
        Shape("70b", 80, 8192, 28672, 1024, 32000, 1024),
    )
}


def make_frequencies(shape: Shape, skew: float, mean: float, seed: int = 0) -> Frequencies:
    """Counts of an invented profile: activity falls as a power of the rank, with noise, no two layers alike.

    skew: the power, 0 for neurons that are all alike. mean: share of neurons active in a token.
    """
    random = np.random.default_rng(seed)
    rank = (np.arange(shape.neurons) + 1) / shape.neurons
    activity = np.empty((shape.layers, shape.neurons))
    for layer in range(shape.layers):
        raw = rank ** -(skew * random.uniform(0.8, 1.2)) * random.uniform(0.8, 1.25, shape.neurons)
        scaled = raw * (mean * random.uniform(0.7, 1.3) / raw.mean())
        for _ in range(20):  # what is cut off at 1 goes to the others
            scaled = np.minimum(scaled, 0.99)
            scaled *= mean / scaled.mean()
        activity[layer] = -np.sort(-np.clip(scaled, 0, 1))
    named = np.minimum(1, activity * 1.1)
    return Frequencies(activity, named, 1 - (1 - activity) ** 3, 1 - (1 - activity) ** 9, True)


def measure(shape: Shape, hardware: Hardware, profile: str, percent: int, ram_percent: int | None) -> dict[str, Any]:
    """One plan: how long it took, how well it is proved, and its times per token beside caching by frequency."""
    sizes = shape.sizes(4096)
    frequencies = make_frequencies(shape, *{"skewed": (0.8, 0.1), "flat": (0.0, 0.1)}[profile])
    total = sizes.n_layers * sizes.n_rows * sizes.row_bytes + sum(sizes.attention_bytes) + 2 * sizes.embeddings_bytes
    ram = None if ram_percent is None else total * ram_percent // 100
    budgets = Budgets(vram=total * percent // 100, ram=ram, context=4096)
    request = Request(sizes, frequencies, hardware, "predicted")
    started = time.perf_counter()
    placement, report = place(request, budgets)
    seconds = time.perf_counter() - started
    problem = formulate(sizes, frequencies, hardware, replace(budgets, ram=None), "predicted", "latency")
    unit = {"gpu": 1, "cpu": 0}
    rows = np.cumsum(problem.groups)
    found = Choice(
        tuple(int(np.searchsorted(rows, placement.gpu_rows(i), side="right")) for i in range(sizes.n_layers)),
        (problem.n_groups,) * sizes.n_layers,
        tuple(unit[layer.attention] for layer in placement.layers),
        unit[placement.embeddings],
        unit[placement.head],
    )
    hottest = top_k(problem, hotness(request, problem), found)
    dense = problem.attention.costs.sum(axis=0)
    dense_seconds = sum(float(problem.attention.costs[i, u]) for i, u in enumerate(found.attention))
    dense_seconds += float(problem.ends.costs[0, found.embeddings] + problem.ends.costs[1, found.head])
    assert len(dense) == 2
    return {
        "shape": shape.name,
        "hardware": hardware.name,
        "profile": profile,
        "vram_percent": percent,
        "ram_percent": ram_percent,
        "seconds": seconds,
        "gap": report.gap,
        "status": report.status,
        "found_by": report.name,
        "token_seconds": report.cost,
        "top_k_seconds": problem.cost(hottest),
        "ffn_seconds": problem.cost(found) - dense_seconds,
        "top_k_ffn_seconds": problem.cost(hottest) - dense_seconds,
    }


def main() -> None:
    """Measure all shapes, profiles and budgets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--hardware", default="rtx4060-laptop")
    parser.add_argument("--profiles", nargs="*", default=["skewed", "flat"], choices=["skewed", "flat"])
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS), help="percent of the model, as VRAM")
    parser.add_argument("--ram", type=int, help="percent of the model, as RAM; by default RAM is not limited")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    hardware = read_hardware(arguments.hardware)
    results = []
    print("shape       profile VRAM %  seconds  gap %   status      by      ms/token  over top-k: token  FFN")
    for name in arguments.shapes:
        for profile in arguments.profiles:
            for percent in arguments.budgets:
                one = measure(SHAPES[name], hardware, profile, percent, arguments.ram)
                results.append(one)
                gap = "-" if one["gap"] is None else f"{one['gap'] * 100:.3f}"
                print(
                    f"{name:<11} {profile:<7} {percent:>5} {one['seconds']:>9.2f} {gap:>6}   {one['status']:<11} "
                    f"{one['found_by']:<7} {one['token_seconds'] * 1e3:>7.2f} "
                    f"{one['top_k_seconds'] / one['token_seconds']:>14.3f}x "
                    f"{one['top_k_ffn_seconds'] / one['ffn_seconds']:>7.3f}x",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
