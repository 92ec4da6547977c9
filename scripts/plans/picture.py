"""Predicted against measured times as a picture. Needs matplotlib (`pip install -e .[bench]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from plans.truth import Measured

MARKERS = ("o", "s", "^")
WITHIN = 0.2


def draw(results: Sequence[Measured], path: Path) -> None:
    """A point for each plan; the band holds what is within a fifth."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 5.2), layout="constrained", dpi=150)
        axes = figure.subplots()
        low = 0.8 * 1e3 * min(min(r.measured, r.predicted) for r in results)
        high = 1.2 * 1e3 * max(max(r.measured, r.predicted) for r in results)
        axes.plot([low, high], [low, high], color="0.5", linewidth=0.8)
        axes.fill_between(
            [low, high],
            [low * (1 - WITHIN), high * (1 - WITHIN)],
            [low * (1 + WITHIN), high * (1 + WITHIN)],
            color="0.92",
            label="within 20 %",
        )
        for marker, name in zip(MARKERS, dict.fromkeys(r.scenario for r in results), strict=False):
            points = [r for r in results if r.scenario == name]
            measured = [r.measured * 1e3 for r in points]
            spread = [[(r.measured - r.low) * 1e3 for r in points], [(r.high - r.measured) * 1e3 for r in points]]
            predicted = [r.predicted * 1e3 for r in points]
            axes.errorbar(measured, predicted, xerr=spread, fmt=marker, markersize=5, linewidth=0.8, label=name)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.set_xlabel("measured, ms a token (bars: quartiles)")
        axes.set_ylabel("predicted, ms a token")
        axes.legend(loc="upper left", frameon=False)
        figure.savefig(path)
