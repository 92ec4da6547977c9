"""The result as a picture: a panel for each thing that grows. Needs matplotlib (`pip install -e .[bench]`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from growth.tables import PEER, Body, Row, at, modes_of, points_of, threads_of

COLOURS = {"predicted": "#0072b2", "exact": "#009e73", "dense": "#d55e00", PEER: "#444444"}  # Okabe and Ito
MARKERS = {"predicted": "o", "exact": "s", "dense": "^"}
COLUMNS, PANEL_INCHES = 3, (4.2, 3.4)
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def draw(body: Body, path: Path) -> None:
    """Write the picture, as PNG or what the name ends in."""
    tables: dict[str, list[Row]] = body["tables"]
    formats = list(dict.fromkeys(row["weight_format"] for row in tables.get("sparsity", [])))
    others = [name for name in ("context", "batch", "overshoot") if tables.get(name)]
    count = len(formats) + len(others)
    columns = min(COLUMNS, count)
    size = (columns * PANEL_INCHES[0], math.ceil(count / columns) * PANEL_INCHES[1] + 0.6)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(math.ceil(count / columns), columns, squeeze=False).flatten()
        for axes, weight_format in zip(panels, formats, strict=False):
            rows = [row for row in tables["sparsity"] if row["weight_format"] == weight_format]
            by_sparsity(axes, rows, body["peer"].get(weight_format))
        for axes, name in zip(panels[len(formats) :], others, strict=False):
            PANELS[name](axes, tables[name])
        for axes in panels[count:]:
            axes.remove()
        machine, shape = body["machine"], body["shape"]
        figure.suptitle(
            f"Decoding speed: {body['preset']}, {shape['layers']} layers\n{threads_of(body)}, {machine['isa']}, "
            f"memory {machine['bandwidth_gigabytes_per_second']:.0f} GB/s",
            fontsize=11,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def by_sparsity(axes: Axes, rows: list[Row], peer: Row | None) -> None:
    """Predicted and exact over sparsity; what does not depend on it is a level."""
    lines(axes, [row for row in rows if row["mode"] != "dense"], "sparsity", 100)
    dense = next((row for row in rows if row["mode"] == "dense"), None)
    for name, row in (("dense", dense), (PEER, peer)):
        if row is not None:
            axes.axhline(row["tokens_per_second"], color=COLOURS[name], linestyle="--", label=name)
    finish(axes, f"Sparsity, {rows[0]['weight_format']}", "neurons silent for a token (%)", "tokens/s")


def by_context(axes: Axes, rows: list[Row]) -> None:
    """Speed over the length of the text so far."""
    lines(axes, rows, "context")
    powers_of_two(axes, sorted({row["context"] for row in rows}))
    finish(axes, f"Context, {at(rows)}", "tokens in the KV cache", "tokens/s")


def by_batch(axes: Axes, rows: list[Row]) -> None:
    """Speed of all sequences together."""
    lines(axes, rows, "batch")
    powers_of_two(axes, sorted({row["batch"] for row in rows}))
    finish(axes, f"Batch, {at(rows)}", "sequences decoded together", "tokens/s, all sequences")


def by_overshoot(axes: Axes, rows: list[Row]) -> None:
    """Speed of predicted mode over what its predictors name in vain."""
    lines(axes, rows, "overshoot")
    finish(axes, f"Predictors, {at(rows)}", "rows named over rows that fire", "tokens/s")


PANELS: dict[str, Any] = {"context": by_context, "batch": by_batch, "overshoot": by_overshoot}


def lines(axes: Axes, rows: list[Row], axis: str, scale: float = 1) -> None:
    """A line for each mode, with the range of its rounds."""
    for mode in modes_of(rows):
        points = [found[mode] for found in points_of(rows, axis, [mode]).values()]
        where = [scale * point[axis] for point in points]
        axes.plot(
            where, [p["tokens_per_second"] for p in points], color=COLOURS[mode], marker=MARKERS[mode], label=mode
        )
        low, high = ([limit(p["rounds"]) for p in points] for limit in (min, max))
        axes.fill_between(where, low, high, color=COLOURS[mode], alpha=0.15, linewidth=0)


def powers_of_two(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis whose ticks are the values."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels with units, zero at the bottom."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
