"""Print what `gpu_measure.py` wrote as Markdown; results of several calls on one machine are put together first.

    python scripts/show_gpu.py benchmarks/gpu-nvidia-h200.json [MORE.json ...] [--into FILE]

Without such a file it says that nothing was measured. --into writes what was put together, to be kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.reports import table
from profiler.artifacts import format_size, write_atomic

NOT_MEASURED = "Not measured: no machine with a GPU was at hand. `scripts/gpu_check.sh` measures on one."


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several, in which later parts stand in the place of earlier ones.

    Raises:
        SystemExit: they are of different GPUs.
    """
    if len({result["machine"]["gpu"] for result in results}) > 1:
        raise SystemExit("show_gpu: these results are of different GPUs")
    body: dict[str, Any] = {}
    for result in results:
        models = {name: {**body.get("models", {}).get(name, {}), **part} for name, part in result["models"].items()}
        body = {**body, **result, "models": {**body.get("models", {}), **models}}
    return body


def lines(body: dict[str, Any]) -> Iterator[str]:
    """All of a result."""
    yield machine_line(body["machine"])
    if "hand_over" in body:
        yield from ["", hardware_line(body)]
    for name, part in body["models"].items():
        if "operators" in part:
            yield from ["", f"**{name}: operators over all layers in turn**", "", *operator_lines(part["operators"])]
        for row in part.get("compare", []):
            yield from ["", f"**{name}, {row['share']:.0%} of the model: {format_size(row['vram'])}**", ""]
            yield from [row["reason"]] if "reason" in row else compare_lines(row)
        if "trace" in part:
            yield from ["", trace_line(name, part["trace"])]
    for failure in body.get("failed", []):
        yield from ["", f"not measured: {failure}"]


def machine_line(machine: dict[str, Any]) -> str:
    """What the figures are of."""
    gpu = "a stand-in for a GPU in host memory: a rehearsal, no figures of a GPU"
    if machine["gpu"] is not None:
        gpu = f"{machine['gpu']} ({format_size(machine['gpu_memory'])}, CUDA {machine['cuda']})"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number is not None)
    return (
        f"Machine: {gpu}; {machine['processor']}, {machine['threads']} threads of {machine['cpus']} CPUs "
        f"({machine['isa']}), {format_size(machine['memory'])}; Python {machine['python']}, {versions}; "
        f"{machine['date']}."
    )


def hardware_line(body: dict[str, Any]) -> str:
    """What does not grow with weights."""
    hardware, hand_over = body["hardware"], body["hand_over"]
    return (
        f"A hand-over there and back takes {hand_over['watching_seconds'] * 1e6:.1f} us where both sides keep "
        f"watching, and {hand_over['asleep_seconds'] * 1e6:.1f} us after a millisecond of other work; the link gives "
        f"{hardware['link_bandwidth'] / 1e9:.1f} GB/s there and {hardware['back_bandwidth'] / 1e9:.1f} GB/s back."
    )


def operator_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each operator, the copy first."""
    cells, missing = [], []
    for row in rows:
        if row["operator"] == "copy":
            cells.append(["a copy, read and written", "", "", f"{row['gigabytes_per_second']:.0f}", "100%"])
        elif row["reason"] is not None:
            cells.append([row["operator"], str(row["layers"]), "-", "-", "-"])
            missing.append(f"not measured: {row['operator']}: {row['reason']}")
        else:
            share, speed = f"{row['share_of_copy']:.0%}", f"{row['gigabytes_per_second']:.0f}"
            cells.append([row["operator"], str(row["layers"]), f"{row['bytes'] / 1e6:.0f}", speed, share])
    found = table(["operator", "layers", "MB", "GB/s", "of a copy"], cells)
    return [*found, "", *missing] if missing else found


def compare_lines(row: dict[str, Any]) -> list[str]:
    """One comparison, each of this engine's speeds beside what bytes alone would allow."""
    comparison, bounds = row["comparison"], row.get("bounds", {})
    cells, missing = [], []
    for one in comparison["rows"]:
        if one["reason"] is not None:
            cells.append([one["name"], "not measured", *["-"] * 7])
            missing.append(f"not measured: {one['name']}: {one['reason']}")
            continue
        speed, bound = one["tokens_per_second"], bounds.get(one["name"])
        cells.append(
            [
                one["name"],
                f"{speed:.1f}",
                "-" if one["ratio"] is None else f"{one['ratio']:.2f}x",
                "-" if bound is None else f"{bound:.0f}",
                "-" if bound is None else f"{speed / bound:.0%}",
                f"{one['first_token_seconds'] * 1e3:.0f} ms",
                "-" if one["vram"] is None else format_size(one["vram"]),
                "-" if one["ram"] is None else format_size(one["ram"]),
                "-" if one["perplexity"] is None else f"{one['perplexity']:.2f}",
            ]
        )
    header = ["", "tokens/s", "over the best layer-wise", "bound by bytes", "of it", "first token", "GPU", "RAM"]
    found = [*table([*header, "perplexity"], cells), ""]
    if comparison["headline"] is not None:
        found.append(f"{comparison['headline']['sentence']}.")
    return [*found, *missing]


def trace_line(name: str, trace: dict[str, Any]) -> str:
    """What overlapping hid."""
    where = f"{name}, {trace['share']:.0%} of the model, traced"
    if "reason" in trace:
        return f"{where}: not measured: {trace['reason']}"
    if trace["hidden_share"] is None:
        return f"{where}: no layer of the plan is split"
    sides = ", ".join(f"{side} {time:.2f} ms" for side, time in trace["split_milliseconds"].items())
    return f"{where}: {trace['hidden_share']:.0%} of the smaller side of split layers hidden ({sides} a token)."


def main() -> None:
    """Print, and keep what was put together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write what was put together")
    args = parser.parse_args()
    found = [json.loads(path.read_text()) for path in args.results]
    if not found:
        print(NOT_MEASURED)
        return
    body = together(found)
    if args.into is not None:
        write_atomic(args.into, json.dumps(body, indent=1).encode() + b"\n")
    print("\n".join(lines(body)))


if __name__ == "__main__":
    main()
