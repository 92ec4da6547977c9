"""The pictures of what was chosen: predictors against what else was tried, and where a plan puts rows and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hybrid.stages.report_drawing import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes,
    layer_ticks,
    legend_below,
    percent_ticks,
    short_size,
    size_ticks,
)
from placement.plan import PURPOSES, Memory, Plan
from profiler.predictor_outline import Trial

ROWS = "share of a layer's rows, hottest first"
FAMILY_COLOURS = {"perceptron": BLUE, "factors": ORANGE, "gates": GREEN, "none": GREY}
MEMORY_NAMES: dict[Memory, str] = {"gpu": "GPU", "ram": "RAM", "flash": "flash"}
PLACES = ("GPU", "RAM, streamed to the GPU", "RAM", "flash")
PLACE_COLOURS = dict(zip(PLACES, (BLUE, SKY, ORANGE, GREY), strict=True))
PURPOSE_COLOURS = dict(
    zip(PURPOSES, (BLUE, SKY, GREEN, GREY, PURPLE, VERMILION, "#b9b9b9", "#6b6b6b", ORANGE), strict=True)
)
Figures = Literal["mass_at_active", "named_at_keep", "bytes_per_token"]


def tried(trials: Sequence[Sequence[Trial]], figures: Figures, title: str, y: str) -> Figure:
    """One figure of every predictor that was tried, against its bytes; those of one layer and family are joined.

    No predictor at all, which names every neuron, is shown only where bytes per token are.
    """
    figure, ax = axes(title, "bytes of one layer's predictor", y, height=HEIGHT + 0.3)
    if figures != "bytes_per_token":
        trials = [[trial for trial in layer if trial.family != "none"] for layer in trials]
    few = len(trials) <= 8
    labelled: set[str] = set()
    for layer in trials:
        for family, colour in FAMILY_COLOURS.items():
            own = sorted((t for t in layer if t.family == family), key=lambda t: t.nbytes)
            if not own:
                continue
            points = [t.nbytes for t in own], [getattr(t, figures) for t in own]
            label = None if family in labelled else family
            labelled.add(family)
            marker = MARKERS[list(FAMILY_COLOURS).index(family)]
            line: dict[str, Any] = {"color": colour, "linewidth": 1, "alpha": 0.9 if few else 0.5}
            ax.plot(*points, marker=marker, markersize=4 if few else 3, label=label, **line)
    chosen = [t for layer in trials for t in layer if t.chosen]
    points = [t.nbytes for t in chosen], [getattr(t, figures) for t in chosen]
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": VERMILION, "linewidths": 1.5}
    ax.scatter(*points, s=90 if few else 45, zorder=3, label="chosen for its layer", **ring)
    _byte_axis(ax, [t.nbytes for layer in trials for t in layer])
    if figures == "bytes_per_token":
        size_ticks(ax.yaxis, max((t.bytes_per_token for layer in trials for t in layer), default=0))
        ax.set_ylim(bottom=0)
    else:
        percent_ticks(ax, "y")
    legend_below(figure, ax)
    return figure


def chosen_sizes(layers: Sequence[tuple[str, int]]) -> Figure:
    """Family and bytes of each layer's chosen predictor."""
    figure, ax = axes("Size of each layer's predictor", "layer", "bytes", height=HEIGHT + 0.3)
    ax.grid(visible=False, axis="x")
    for family, colour in FAMILY_COLOURS.items():
        own = [(i, size) for i, (name, size) in enumerate(layers) if name == family]
        if own:
            ax.bar([i for i, _ in own], [size for _, size in own], width=0.8, color=colour, label=family)
    layer_ticks(ax, len(layers))
    size_ticks(ax.yaxis, max(size for _, size in layers))
    legend_below(figure, ax, 4)
    return figure


def rows_placed(plan: Plan) -> Figure:
    """By layer, how many rows live where."""
    layers = len(plan.layers)
    height = min(9.0, 1.7 + 0.17 * layers + 0.6 / layers)
    figure, ax = axes(
        "Where the rows of each layer are", "share of a layer's rows, hottest first", "layer", height=height
    )
    ax.grid(visible=False)
    used = rows_by_place(plan)
    start = np.zeros(layers)
    for place in PLACES:
        width = np.array(used[place]) / plan.n_rows
        if width.any():
            streamed: dict[str, Any] = {"hatch": "////", "linewidth": 0} if place == PLACES[1] else {}
            ax.barh(range(layers), width, left=start, height=0.82, color=PLACE_COLOURS[place], label=place, **streamed)
        start += width
    ax.set(xlim=(0, 1), ylim=(layers - 0.4, -0.6))
    layer_ticks(ax, layers, "y")
    percent_ticks(ax, "x")
    legend_below(figure, ax, 4)
    return figure


def rows_by_place(plan: Plan) -> dict[str, list[int]]:
    """For each of `PLACES`, the rows of every layer that are there."""
    found = {place: [0] * len(plan.layers) for place in PLACES}
    for i, layer in enumerate(plan.layers):
        for segment in layer.segments:
            place = PLACES[1] if segment.streamed else {"gpu": "GPU", "ram": "RAM", "flash": "flash"}[segment.resident]
            found[place][i] += segment.rows
    return found


def bytes_placed(plan: Plan) -> Figure:
    """What each memory holds, by purpose, and its budget."""
    memories = plan.memories
    figure, ax = axes("What each memory holds", "bytes", "", height=2.6)
    ax.grid(visible=False, axis="y")
    before = [0] * len(memories)
    for purpose in PURPOSES:
        sizes = [plan.bytes[memory][purpose] for memory in memories]
        if any(sizes):
            ax.barh(range(len(memories)), sizes, left=before, height=0.6, color=PURPOSE_COLOURS[purpose], label=purpose)
        before = [low + size for low, size in zip(before, sizes, strict=True)]
    ink = mpl.rcParams["text.color"]
    for y, budget in enumerate(plan.budget(memory) for memory in memories):
        if budget:
            label = "budget" if y == 0 else None
            ax.plot([budget] * 2, [y - 0.4, y + 0.4], color=ink, linestyle="--", linewidth=1.4, label=label)
    ax.set_yticks(range(len(memories)), [MEMORY_NAMES[memory] for memory in memories])
    ax.set_ylim(len(memories) - 0.5, -0.5)
    ax.set_xlim(left=0)
    size_ticks(ax.xaxis, ax.get_xlim()[1])
    legend_below(figure, ax, 4)
    return figure


def _byte_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis on which 0, no predictor, has a place too."""
    positive = [size for size in sizes if size]
    if not positive:
        return
    low, high = np.log2(min(positive)), np.log2(max(positive))
    ticks = [2.0**power for power in np.unique(np.linspace(np.floor(low), np.ceil(high), 5).round())]
    threshold = ticks[0]
    ax.set_xscale("symlog", base=2, linthresh=threshold, linscale=0.7)
    ax.set_xticks([0, *ticks] if 0 in sizes else ticks, minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_size(value) if value else "none"))
    ax.set_xlim(-0.15 * threshold if 0 in sizes else 0.9 * min(positive), 1.15 * max(*positive, ticks[-1]))
