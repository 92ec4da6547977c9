"""Draws docs/two-devices.png: what the two units did while one token was decoded, from a trace of `hybrid run`.

    python scripts/make_synthetic.py --preset llama-1b --directory build/llama-1b --format q4_0 --hottest-first
    hybrid run build/llama-1b "def parse_args(" -n 12 --vram 500MiB --context 512 --second-device cpu \\
        --slowdown cpu=4 --trace build/trace.json
    python scripts/picture_of_trace.py build/trace.json --slowdown 4 --json benchmarks/two-devices.json
    python scripts/picture_of_trace.py --redraw benchmarks/two-devices.json

The median decode step of the trace is drawn, and kept by --json. The stand-in for a GPU is a part of host memory with
threads of its own; slowing the host makes it the faster unit. A picture of one says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from profiler.artifacts import UserError, write_atomic

UNITS = {1: "gpu", 2: "cpu"}  # rows of a trace
PURPOSES = {
    "attention": ("norms", "linear", "positions", "pages", "attention", "embeddings"),
    "predictor": ("predictors",),
    "feed-forward": ("feed-forward", "sums"),
    "waiting for the other unit": ("hand-over", "waiting"),
}
COLOURS = {
    "attention": "#4c78a8",
    "predictor": "#b279a2",
    "feed-forward": "#f58518",
    "head": "#54a24b",
    "waiting for the other unit": "#dcdcdc",
}
CLOSE = 3  # layers that are shown larger
SIZE, DPI = (11, 4.6), 130


def median_step(trace: Path, slowdown: float) -> dict[str, Any]:
    """The median decode step of a trace, and the run's summary.

    Raises:
        UserError: it is no trace of a run on two units.
    """
    try:
        document = json.loads(trace.read_text())
        summary = document["otherData"]["summary"]
        kept = {key: summary[key] for key in ("tokens_per_second", "hidden_share", "rows_per_token", "mode")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{trace} is no trace; write one with: hybrid run DIR PROMPT --trace FILE ({error})") from error
    steps = sorted((e for e in document["traceEvents"] if e.get("cat") == "decode"), key=lambda e: e["dur"])
    step = steps[len(steps) // 2]
    end = step["ts"] + step["dur"]
    spans = [
        {
            "unit": UNITS[event["tid"]],
            "kind": event["cat"],
            "layer": event["args"].get("layer"),
            "begin": round(event["ts"] - step["ts"], 2),
            "duration": event["dur"],
        }
        for event in document["traceEvents"]
        if event["ph"] == "X" and event["tid"] in UNITS and step["ts"] <= event["ts"] < end
    ]
    return {"slowdown": slowdown, "summary": kept, "microseconds": step["dur"], "spans": spans}


def purpose_of(span: dict[str, Any]) -> str:
    """What a span is drawn as."""
    if span["layer"] is None and span["kind"] == "linear":
        return "head"
    return next(purpose for purpose, kinds in PURPOSES.items() if span["kind"] in kinds)


def draw(found: dict[str, Any], path: Path) -> None:
    """The whole token, and below it some layers that are computed on both units."""
    layers = split_layers(found["spans"])[:CLOSE]
    begin = min(s["begin"] for s in found["spans"] if s["layer"] == layers[0])
    end = max(s["begin"] + s["duration"] for s in found["spans"] if s["layer"] == layers[-1])
    figure, (whole, close) = plt.subplots(2, 1, figsize=SIZE, layout="constrained", height_ratios=(1, 1.25))
    lanes(whole, found["spans"], 0, found["microseconds"])
    lanes(close, [s for s in found["spans"] if s["layer"] in layers], begin, end)
    whole.axvspan(begin / 1000, end / 1000, color="#000000", alpha=0.07, linewidth=0)
    summary = found["summary"]
    rows = summary["rows_per_token"]
    whole.set_title(
        f"One token: {found['microseconds'] / 1000:.1f} ms; {rows['gpu']:,.0f} neurons computed on the stand-in for a "
        f"GPU, {rows['cpu']:,.0f} on the CPU",
        loc="left",
        fontsize=10,
    )
    close.set_title(f"Layers {layers[0]} to {layers[-1]}, larger", loc="left", fontsize=10)
    for layer in layers:
        at = min(s["begin"] for s in found["spans"] if s["layer"] == layer)
        close.text(at / 1000, 1.52, f" layer {layer}", fontsize=8, va="center")
        close.axvline(at / 1000, color="#555555", linewidth=0.6)
    close.set_xlabel(
        f"milliseconds; the \u201cGPU\u201d is a stand-in: host memory with threads of its own, beside a host made to "
        f"take {found['slowdown']:g} times as long; {summary['hidden_share']:.0%} of the smaller side hidden",
        fontsize=9,
    )
    patches = [Patch(color=colour, label=purpose) for purpose, colour in COLOURS.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=9)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "picture.png"
        figure.savefig(drawn, dpi=DPI)
        plt.close(figure)
        write_atomic(path, drawn.read_bytes())


def split_layers(spans: list[dict[str, Any]]) -> list[int]:
    """Layers whose neurons both units compute, in their order, from the middle of the model on.

    Raises:
        UserError: there is none, so that no picture of both at work can be drawn.
    """
    units = {u: {s["layer"] for s in spans if s["unit"] == u and s["kind"] == "feed-forward"} for u in UNITS.values()}
    found = sorted(units["gpu"] & units["cpu"])
    if not found:
        raise UserError("no layer of this trace was computed on both units; give another --vram")
    middle = max(0, len(found) // 2 - CLOSE // 2)
    return found[middle:]


def lanes(axes: Axes, spans: list[dict[str, Any]], begin: float, end: float) -> None:
    """A row for each unit, the GPU's above."""
    for height, unit in ((1, "gpu"), (0, "cpu")):
        for purpose, colour in COLOURS.items():
            bars = [
                (s["begin"] / 1000, s["duration"] / 1000)
                for s in spans
                if s["unit"] == unit and purpose_of(s) == purpose
            ]
            axes.broken_barh(bars, (height - 0.36, 0.72), facecolors=colour, linewidth=0)
    axes.set_yticks([1, 0], ["stand-in\nfor a GPU", "CPU"], fontsize=9)
    axes.set_xlim(begin / 1000, end / 1000)
    axes.set_ylim(-0.5, 1.65)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False, labelsize=9)


def main() -> None:
    """Measure and draw, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", help="what `hybrid run --trace` wrote")
    parser.add_argument(
        "--slowdown", type=float, default=1.0, help="what the host was slowed by (default 1, not at all)"
    )
    parser.add_argument("--json", type=Path, help="where the step that is drawn is kept")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="draw what --json kept")
    parser.add_argument("--out", type=Path, default=Path("docs/two-devices.png"))
    args = parser.parse_args()
    if (args.trace is None) == (args.redraw is None):
        parser.error("name a trace, or a file with --redraw: one of both")
    try:
        found = json.loads(args.redraw.read_text()) if args.redraw else median_step(args.trace, args.slowdown)
        if args.json is not None:
            write_atomic(args.json, json.dumps(found, separators=(",", ":")).encode())
        draw(found, args.out)
    except UserError as error:
        raise SystemExit(f"picture_of_trace: {error}") from error


if __name__ == "__main__":
    main()
