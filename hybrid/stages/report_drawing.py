"""How pictures look, and how they become SVG for the page and PNG files: the same figure, drawn twice.

In the SVG what is neither data nor background takes the colour of the page's text, so that it is read on dark and on
light. Needs matplotlib, which is optional.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from profiler.artifacts import format_size

# Okabe and Ito's colours for all kinds of sight, but black and yellow, which vanish on one of the backgrounds.
BLUE, ORANGE, GREEN = "#1f83c4", "#e69f00", "#009e73"
VERMILION, PURPLE, SKY, GREY = "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, GREY)
MARKERS = "osD^vPX"
DEPTH = LinearSegmentedColormap.from_list("depth", [BLUE, "#a58bb0", VERMILION])
PAGE_INK, PAPER_INK = "#010203", "#222222"  # the first stands for the colour of the page's text
WIDTH, HEIGHT = 4.7, 3.3  # inches
FONT = 9.5
PNG_DPI = 160


@dataclass(frozen=True)
class Picture:
    """One picture. name: of the PNG file. caption: what is seen, with units and the source of every number."""

    name: str
    section: str
    caption: str
    draw: Callable[[], Figure]


def as_svg(picture: Picture) -> str:
    """An `<svg>` element for a page that may hold others: its ids are its own."""
    buffer = io.StringIO()
    with _style(PAGE_INK, picture.name):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.draw().savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(PAGE_INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(picture.caption)}"', 1)


def as_png(picture: Picture) -> bytes:
    """The picture on white, in the PNG format."""
    buffer = io.BytesIO()
    with _style(PAPER_INK, picture.name):
        picture.draw().savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white")
    return buffer.getvalue()


def axes(title: str, x: str, y: str, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.set_title(title, loc="left", fontsize=FONT + 1, fontweight="bold")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.2, linewidth=0.6)
    ax.set_axisbelow(True)
    return figure, ax


def percent(value: float, _: object = None) -> str:
    """A share of 1 as an axis shows it: as many digits as it needs."""
    return f"{100 * value:.4g} %"


def short_size(size: float, _: object = None) -> str:
    """Bytes as an axis shows them: `64 KiB`."""
    return format_size(size).replace(".0 ", " ") if size else "0"


def size_ticks(axis: Axis, largest: float) -> None:
    """Let an axis from 0 to about `largest` show sizes at round binary numbers."""
    step = 2.0 ** np.floor(np.log2(max(largest, 4) / 3))
    axis.set_major_locator(MultipleLocator(step))
    axis.set_major_formatter(FuncFormatter(short_size))


def percent_ticks(ax: Axes, which: str) -> None:
    """Let axes `x` or `y` show shares of 1 in percent."""
    for name in which:
        getattr(ax, f"{name}axis").set_major_formatter(FuncFormatter(percent))


def layer_ticks(ax: Axes, layers: int, which: str = "x") -> None:
    """Whole numbers along the axis of the layers."""
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(MaxNLocator(integer=True, nbins=min(12, layers + 1), min_n_ticks=1))


def legend_below(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """A legend that covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def some(count: int, most: int = 5) -> list[int]:
    """Up to `most` of `0 .. count - 1`, evenly spread, the first and the last among them."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


@contextmanager
def _style(ink: str, salt: str) -> Iterator[None]:
    settings: dict[Any, Any] = {
        "font.size": FONT,
        "font.family": "sans-serif",
        "axes.labelsize": FONT,
        "axes.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": FONT - 1,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.2,
        "lines.linewidth": 1.6,
        "hatch.linewidth": 0.8,
        "text.parse_math": False,  # names are of others
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "image.composite_image": False,
    }
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "hatch.color")
    settings |= dict.fromkeys((*colours, "grid.color"), ink)
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font for measuring lacks
        yield
