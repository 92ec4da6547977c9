"""What can be left out of the feed-forward networks, and what that costs: neurons computed against perplexity.

    python scripts/bench_budgets.py DIR --mode predicted --budgets 0.001,0.005,0.01 --json benchmarks/budgets-demo.json
    python scripts/bench_budgets.py DIR --mode threshold --sparsities 0.3,0.5,0.7 --json benchmarks/budgets-silu.json

Thresholds are set on one text and measured on another, through the engine, with a 95 % interval over documents. Modes
predicted and threshold: one price per neuron for all layers (`hybrid calibrate --budget`), at each budget. Mode
threshold also: the same share of inactive neurons in every layer (CATS), at each sparsity. The texts are the demo's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.stages.budget import BudgetSettings, fit
from hybrid.stages.calibrate import CalibrateSettings, calibrate
from hybrid.stages.evaluate import EvaluationSettings, evaluate
from hybrid.stages.shipped import CALIBRATION_TEXT, HELDOUT_TEXT
from profiler.artifacts import UserError


@dataclass(frozen=True)
class Row:
    """One setting on the held-out text: share of neurons computed, mass that is kept, perplexity over dense."""

    how: str
    asked: str
    active: float
    named: float
    mass_kept: float
    least_mass: float
    perplexity: float
    ratio: float
    low: float | None
    high: float | None


def measured(model: Path, mode: str, how: str, asked: str, text: Path, tokens: int | None) -> Row:
    """The thresholds that the directory now has."""
    settings = EvaluationSettings(modes=(mode,), tokens=tokens)
    found = evaluate(model, [text], settings).evaluation.modes[1]
    interval, layers = found.quality.interval, found.layers
    row = Row(
        how=how,
        asked=asked,
        active=sum(layer.active for layer in layers) / len(layers),
        named=sum(layer.named for layer in layers) / len(layers),
        mass_kept=sum(layer.mass_recall for layer in layers) / len(layers),
        least_mass=min(layer.mass_recall for layer in layers),
        perplexity=found.quality.perplexity,
        ratio=found.quality.ratio,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
    )
    print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
    return row


def table(rows: list[Row]) -> str:
    """Markdown."""
    header = ("thresholds", "asked for", "active", "computed", "mass kept", "worst layer", "perplexity", "over dense")
    lines = ["| " + " | ".join((*header, "95 % interval")) + " |", "|---|" + "--:|" * len(header)]
    for r in rows:
        span = "-" if r.low is None or r.high is None else f"{r.low - 1:+.2%} to {r.high - 1:+.2%}"
        kept = f"{r.active:.1%} | {r.named:.1%} | {r.mass_kept:.1%} | {r.least_mass:.1%}"
        lines.append(f"| {r.how} | {r.asked} | {kept} | {r.perplexity:.2f} | {r.ratio - 1:+.2%} | {span} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a model directory; a copy of it is used")
    parser.add_argument("--mode", choices=["predicted", "threshold"], default="predicted", help="whose thresholds")
    parser.add_argument("--calibrate", type=Path, default=CALIBRATION_TEXT, help="the text that thresholds are set on")
    parser.add_argument("--text", type=Path, default=HELDOUT_TEXT, help="the text that they are measured on")
    parser.add_argument("--allocation", choices=["price", "share"], default="price", help="of neurons to layers")
    parser.add_argument("--tokens", type=int, help="of the measured text at most")
    parser.add_argument("--search-tokens", type=int, default=50_000, help="of the other one, for a budget")
    parser.add_argument("--sparsities", default="", help="mode threshold: shares of inactive neurons")
    parser.add_argument("--budgets", default="0.001,0.005,0.01", help="of perplexity, as shares")
    parser.add_argument("--json", type=Path, help="where the figures go; with --show, where they are read from")
    parser.add_argument("--show", action="store_true", help="print the table of --json, measure nothing")
    args = parser.parse_args()
    if args.show:
        print(table([Row(**row) for row in json.loads(args.json.read_text())["rows"]]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copytree(args.model, Path(folder) / "model"))
        for sparsity in map(float, filter(None, args.sparsities.split(","))):
            calibrate(model, [args.calibrate], CalibrateSettings(sparsity=sparsity))
            asked = f"{sparsity:.0%} left out"
            rows.append(measured(model, "threshold", "same share in every layer", asked, args.text, args.tokens))
        for budget in map(float, args.budgets.split(",")):
            try:
                fit(
                    model,
                    [args.calibrate],
                    BudgetSettings(budget, args.mode, tokens=args.search_tokens, allocation=args.allocation),
                )
            except UserError as error:
                print(f"{budget:.1%}: {error}", file=sys.stderr)
                continue
            asked = f"within {budget:.1%}"
            how = "one price per neuron" if args.allocation == "price" else "same share in every layer"
            rows.append(measured(model, args.mode, how, asked, args.text, args.tokens))
    if args.json:
        args.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
