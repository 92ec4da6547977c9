"""The pictures of a report: each function draws one from what `report_data` read. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hybrid.stages.report_data import Activity, Domain, Shares
from hybrid.stages.report_drawing import (
    BLUE,
    COLOURS,
    DEPTH,
    GREEN,
    GREY,
    HEIGHT,
    MARKERS,
    ORANGE,
    VERMILION,
    WIDTH,
    axes,
    layer_ticks,
    legend_below,
    percent,
    percent_ticks,
    some,
)
from profiler.skew import Given

X_NEURONS = "share of a layer's neurons, hottest first"
Y_GIVEN = "share of all activations"
SPARSITY = {"active": "active in a token", "named": "named for a token"}
SPARSITY |= {"union4": "active in 4 tokens", "union16": "active in 16 tokens"}


LARGEST_COST = 1e6  # that is drawn, over dense
SMALL_COST = 1e-3  # below it the axis is even, where there are large ones too
COST_TICKS = (-1e-1, -1e-2, -1e-3, 0, 1e-3, 1e-2, 1e-1, 1, 1e2, 1e4)
RAREST = 1e-4  # the frequency that the heat map's darkest colour stands for, at least


def numbers(values: Given) -> npt.NDArray[np.float64]:
    """Values as drawn; what is None leaves a gap."""
    return np.array([np.nan if value is None else value for value in values])


def hotness_by_layer(activity: Activity) -> Figure:
    """The share of activations that the hottest neurons give, a line for each layer."""
    held_out = activity.whole.held_out is not None
    text = "the other half of the text" if held_out else "the text they were chosen on"
    figure, ax = axes(f"By layer, on {text}", X_NEURONS, Y_GIVEN)
    shown = some(len(activity.layers), 6)
    for i, curve in enumerate(activity.layers):
        values = curve.in_sample if curve.held_out is None else curve.held_out
        colour = DEPTH(i / max(1, len(activity.layers) - 1))
        label = f"layer {i}" if i in shown else None
        ax.plot(activity.shares, numbers(values), color=colour, linewidth=1.2, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="all alike")
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    percent_ticks(ax, "xy")
    ax.legend(loc="lower right")
    return figure


def hotness_held_out(activity: Activity) -> Figure:
    """Means over layers, and how far layers are apart, with the hottest few percent spread out."""
    whole = activity.whole
    title = "The hottest few percent" if whole.held_out is None else "Does hotness hold on other text?"
    figure, ax = axes(title, X_NEURONS, Y_GIVEN)
    if whole.held_out is not None:
        every = np.array([numbers(curve.held_out) for curve in activity.layers if curve.held_out is not None])
        every = every[~np.isnan(every).any(1)]
        if len(every):
            low, high = every.min(0), every.max(0)
            ax.fill_between(activity.shares, low, high, color=BLUE, alpha=0.18, linewidth=0, label="between all layers")
        ax.plot(activity.shares, numbers(whole.held_out), color=BLUE, label="on the other half of the text")
    own = numbers(whole.in_sample)
    ax.plot(activity.shares, own, color=ORANGE, linestyle="--", label="on the text they were chosen on")
    _log_shares(ax, activity.shares)
    ax.set_ylim(0, 1.02)
    percent_ticks(ax, "xy")
    ax.legend(loc="upper left")
    return figure


def hotness_of_domain(activity: Activity, domain: Domain) -> Figure:
    """One kind of text: its own neurons, those of the other half of all text, those of each other kind."""
    figure, ax = axes(f"On {domain.name}"[:48], X_NEURONS, Y_GIVEN)
    few = len(domain.chosen_on) <= 4
    for n, (other, values) in enumerate(domain.chosen_on):
        colour = COLOURS[2:][n % 5] if few else GREY
        label = f"chosen on {other}"[:40] if few else ("chosen on another kind of text" if n == 0 else None)
        ax.plot(activity.shares, numbers(values), color=colour, linewidth=1.2, label=label)
    if domain.curve.held_out is not None:
        ax.plot(activity.shares, numbers(domain.curve.held_out), color=BLUE, label="chosen on the other half of all")
    own = numbers(domain.curve.in_sample)
    ax.plot(activity.shares, own, color=ORANGE, linestyle="--", label="chosen on this text")
    _log_shares(ax, activity.shares)
    ax.set_ylim(0, 1.02)
    percent_ticks(ax, "xy")
    ax.legend(loc="upper left")
    return figure


def heat_map(activity: Activity) -> Figure:
    """Layers by neurons, hottest left, coloured by frequency on a logarithmic scale."""
    layers = len(activity.heat)
    height = min(7.0, max(HEIGHT, 1.6 + 0.11 * layers))
    figure, ax = axes("How often each neuron is active", X_NEURONS, "layer", height=height)
    ax.grid(visible=False)
    colours = mpl.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    lowest = float(np.min(activity.heat[activity.heat > 0], initial=0.1))
    drawn = np.ma.masked_less_equal(activity.heat, 0)
    extent = (0.0, 1.0, layers - 0.5, -0.5)
    norm = LogNorm(max(lowest, RAREST), 1, clip=True)
    image = ax.imshow(drawn, cmap=colours, norm=norm, aspect="auto", extent=extent, interpolation="none")
    layer_ticks(ax, layers, "y")
    percent_ticks(ax, "x")
    bar: Any = figure.colorbar(image, ax=ax, label="share of tokens", format=FuncFormatter(percent))
    bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    return figure


def sparsity(activity: Activity) -> Figure:
    """By layer, the share of neurons that a token uses, and that several tokens together use."""
    figure, ax = axes("Neurons used, by layer", "layer", "share of the layer's neurons")
    layers = np.arange(len(activity.layers))
    styles = {"active": BLUE, "named": ORANGE, "union4": GREEN, "union16": VERMILION}
    for marker, (name, values) in zip(MARKERS, activity.sparsity.items(), strict=False):
        shown = marker if len(layers) <= 64 else None
        ax.plot(layers, values, color=styles[name], marker=shown, markersize=4, label=SPARSITY[name])
    ax.set_ylim(0, min(1.02, 1.08 * max(float(v.max()) for v in activity.sparsity.values()) + 1e-6))
    layer_ticks(ax, len(layers))
    percent_ticks(ax, "y")
    legend_below(figure, ax, 2)
    return figure


def by_layer(title: str, y: str, lines: Sequence[tuple[str, Sequence[float] | Shares]]) -> Figure:
    """Any shares by layer, a line for each name."""
    figure, ax = axes(title, "layer", y)
    for n, (name, values) in enumerate(lines):
        marker = MARKERS[n % len(MARKERS)] if len(values) <= 64 else None
        ax.plot(values, color=COLOURS[n % len(COLOURS)], marker=marker, markersize=4, label=name)
    ax.set_ylim(bottom=0)
    layer_ticks(ax, max(len(values) for _, values in lines))
    percent_ticks(ax, "y")
    legend_below(figure, ax, 2)
    return figure


def costs(names: Sequence[str], ratios: Sequence[tuple[float, float | None, float | None]]) -> Figure:
    """What each mode adds to dense perplexity: ratio with the ends of its interval, None where there is none."""
    height = 1.3 + 0.36 * len(names)
    figure, ax = axes("What a mode adds to dense perplexity", "perplexity over dense", "", WIDTH, height)
    for n, (ratio, low, high) in enumerate(ratios):
        if low is not None and high is not None:
            ends = [min(low - 1, LARGEST_COST), min(high - 1, LARGEST_COST)]
            ax.plot(ends, [n, n], color=BLUE, linewidth=2.5, solid_capstyle="butt")
        ax.plot([min(ratio - 1, LARGEST_COST)], [n], color=VERMILION, marker="o", markersize=5, linestyle="none")
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.1)
    ends = [end - 1 for one in ratios for end in one if end is not None]
    if max(map(abs, ends)) > 10 * SMALL_COST:  # a mode that costs little is told from one that costs nothing
        ax.set_xscale("symlog", linthresh=SMALL_COST)
        ax.set_xticks([tick for tick in COST_TICKS if tick <= 10 * max(ends) and tick >= 10 * min(ends)])
        ax.xaxis.set_minor_locator(NullLocator())
    percent_ticks(ax, "x")
    return figure


def _log_shares(ax: Axes, shares: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(max(shares[0], 1e-3), 1)
    ax.xaxis.set_minor_locator(NullLocator())
