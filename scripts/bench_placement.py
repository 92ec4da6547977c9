"""How long placement takes, how well it is proved, and what it gains over caching by frequency: a table per shape.

    python scripts/bench_placement.py --json benchmarks/placement.json
    python scripts/bench_placement.py --budgets 15 35 --ram 70 --json benchmarks/placement.json

Nothing is run but the solver: times per token are predicted from the figures of a machine that is not here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from placement.cost import ModelSizes
from placement.formulate import formulate, to_placement
from placement.frequencies import Frequencies
from placement.greedy import top_k
from placement.latency import token_seconds
from placement.plan import Budgets, Placement
from placement.planner import Request, hotness, place
from placement.problem import CPU, GPU, Choice
from profiler.artifacts import UserError, write_atomic
from profiler.hardware import Hardware, read_hardware

CONTEXT = 4096
PROFILES = {"skewed": (0.8, 0.1), "flat": (0.0, 0.1)}  # power of the rank, share of neurons active
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
    sizes, frequencies = shape.sizes(CONTEXT), make_frequencies(shape, *PROFILES[profile])
    total = sizes.n_layers * sizes.n_rows * sizes.row_bytes + sum(sizes.attention_bytes) + 2 * sizes.embeddings_bytes
    ram = None if ram_percent is None else total * ram_percent // 100
    request = Request(sizes, frequencies, hardware, "predicted")
    started = time.perf_counter()
    placement, report = place(request, Budgets(vram=total * percent // 100, ram=ram, context=CONTEXT))
    seconds = time.perf_counter() - started
    expected = token_seconds(sizes, frequencies, hardware, placement)
    hottest = token_seconds(sizes, frequencies, hardware, by_frequency(request, placement))
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
        "token_seconds": expected.token_seconds,
        "top_k_token_seconds": hottest.token_seconds,
        "ffn_seconds": expected.ffn_seconds + expected.transfer_seconds,
        "top_k_ffn_seconds": hottest.ffn_seconds + hottest.transfer_seconds,
    }


def by_frequency(request: Request, placement: Placement) -> Placement:
    """The hottest rows on the GPU, then in RAM, beside the dense parts of another placement."""
    flash = any(segment.on_flash for layer in placement.layers for segment in layer.segments)
    problem = formulate(
        request.sizes, request.frequencies, request.hardware, placement.budgets, request.mode, "latency", flash=flash
    )
    places = {"cpu": CPU, "gpu": GPU}
    nothing = (0,) * request.sizes.n_layers
    units = tuple(places[layer.attention] for layer in placement.layers)
    dense = Choice(nothing, nothing, units, places[placement.embeddings], places[placement.head])
    return to_placement(problem, top_k(problem, hotness(request, problem), dense), request.mode, placement.budgets)


def lines(results: list[dict[str, Any]]) -> list[str]:
    """The plans as Markdown."""
    found = [
        "| shape | profile | VRAM | RAM | seconds | gap | proved | by | ms/token | top-k over it | FFN part |",
        "|---|---|--:|--:|--:|--:|---|---|--:|--:|--:|",
    ]
    for one in results:
        gap = "-" if one["gap"] is None else f"{one['gap']:.3%}"
        ram = "-" if one["ram_percent"] is None else f"{one['ram_percent']} %"
        token, ffn = (one[f"top_k_{part}"] / one[part] for part in ("token_seconds", "ffn_seconds"))
        found.append(
            f"| {one['shape']} | {one['profile']} | {one['vram_percent']} % | {ram} | {one['seconds']:.2f} | {gap} | "
            f"{one['status']} | {one['found_by']} | {one['token_seconds'] * 1e3:.2f} | "
            f"{token:.3f}x | {ffn:.3f}x |"
        )
    return found


def subset_losses(count: int, skew: float, seed: int = 0) -> list[float]:
    """How much longer the best prefixes take than the best free subsets, as shares, in random pairs of layers.

    Six groups a layer, whose activity falls by a power of their rank; a GPU 1.2 to 8 times as fast as the CPU, room for
    1 to 11 of the 12 groups, hand-overs of up to a fifth of a layer's time on the CPU.
    """
    random, losses = np.random.default_rng(seed), []
    subsets = (np.arange(64)[:, None] >> np.arange(6)) & 1  # [subsets, groups]
    prefixes = np.all(np.diff(subsets, axis=1) <= 0, axis=1)
    for _ in range(count):
        active = np.sort((np.arange(6) + 1.0) ** -skew * random.uniform(0.5, 1.5, (2, 6)), axis=1)[:, ::-1]
        faster, hand_over = random.uniform(1.2, 8), random.uniform(0, 0.2) * active.sum(axis=1).mean()
        on_gpu, on_cpu = subsets @ (active.T / faster), (1 - subsets) @ active.T  # [subsets, layers]
        times = np.maximum(on_gpu, on_cpu) + hand_over * (subsets.sum(axis=1) < 6)[:, None]
        groups = subsets.sum(axis=1)
        fits = groups[:, None] + groups[None, :] <= random.integers(1, 12)
        both = np.where(fits, times[:, 0][:, None] + times[:, 1][None, :], np.inf)
        losses.append(float(both[np.ix_(prefixes, prefixes)].min() / both.min() - 1))
    return losses


def subset_lines(count: int = 1000) -> list[str]:
    """What prefixes lose, as Markdown."""
    found = ["| activity | mean loss | 95 % of cases below | most |", "|---|--:|--:|--:|"]
    for name, skew in (("flat", 0.0), ("skewed (power of 0.8)", 0.8), ("very skewed (power of 1.5)", 1.5)):
        losses = np.array(subset_losses(count, skew))
        found.append(f"| {name} | {losses.mean():.2%} | {np.quantile(losses, 0.95):.2%} | {losses.max():.2%} |")
    return [*found, "", f"{count} pairs of layers each, of six groups: real layers have a hundred and lose less."]


def main() -> None:
    """Measure all shapes, profiles and budgets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--hardware", default="rtx4060-laptop")
    parser.add_argument("--profiles", nargs="*", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS), help="percent of the model, as VRAM")
    parser.add_argument("--ram", type=int, help="percent of the model, as RAM; by default RAM is not limited")
    parser.add_argument("--json", type=Path, help="add the results to those of this file")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print earlier results")
    parser.add_argument("--subsets", action="store_true", help="print what prefixes lose against free subsets")
    arguments = parser.parse_args()
    if arguments.subsets or arguments.show:
        shown = subset_lines() if arguments.subsets else lines(json.loads(arguments.show.read_text())["results"])
        print("\n".join(shown))
        return
    hardware = read_hardware(arguments.hardware)
    cases = [(s, p, b) for s in arguments.shapes for p in arguments.profiles for b in arguments.budgets]
    results = []
    for number, (shape, profile, percent) in enumerate(cases):
        try:
            results.append(measure(SHAPES[shape], hardware, profile, percent, arguments.ram))
        except UserError as error:
            print(f"{shape}, {percent} %: {error}", file=sys.stderr)
        print(f"{number + 1} of {len(cases)}", file=sys.stderr, flush=True)
    print("\n".join(lines(results)))
    if arguments.json:
        earlier = json.loads(arguments.json.read_text())["results"] if arguments.json.exists() else []
        write_atomic(arguments.json, (json.dumps({"results": earlier + results}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
