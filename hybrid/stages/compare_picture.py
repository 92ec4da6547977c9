"""A comparison as one picture: how fast each contender decodes, how soon it begins, and what it takes of memory.

Needs matplotlib, which is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybrid.stages.compare_results import Comparison, Row
from hybrid.stages.report_drawing import BLUE, FONT, GREY, ORANGE, SKY, VERMILION, Picture, short_size, size_ticks

WIDTH, ROW_HEIGHT, MARGIN = 11.0, 0.34, 1.3  # inches


def picture(result: Comparison) -> Picture:
    """All that was measured, a line for each contender, in the order of the table."""
    caption = result.headline.sentence if result.headline is not None else "contenders of a comparison"
    return Picture("compare", "compare", caption, lambda: _draw(result))


def _draw(result: Comparison) -> Figure:
    rows = [row for row in reversed(result.rows) if row.reason is None]
    figure = Figure(figsize=(WIDTH, MARGIN + ROW_HEIGHT * max(3, len(rows))), layout="constrained")
    speeds, starts, memory = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    colours = [_colour(row, result) for row in rows]
    _bars(speeds, [row.tokens_per_second or 0.0 for row in rows], colours, "decoding, tokens/s")
    for at, row in enumerate(rows):
        if row.ratio is not None and row.tokens_per_second is not None:
            speeds.annotate(
                f" {row.ratio:.2f}x",
                (row.tokens_per_second, at),
                va="center",
                fontsize=FONT - 1.5,
                annotation_clip=False,
            )
    speeds.margins(x=0.14)
    speeds.set_yticks(range(len(rows)), [row.name for row in rows])
    seconds = [(row.first_token_seconds or 0.0) * 1e3 for row in rows]
    _bars(starts, seconds, colours, f"first token after a prompt of {result.prompt_tokens}, ms")
    _memory(memory, rows, result.budget)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    if result.headline is not None:
        figure.suptitle(result.headline.sentence, fontsize=FONT + 0.5, fontweight="bold", wrap=True)
    return figure


def _colour(row: Row, result: Comparison) -> str:
    """Blue skips rows; of the others the fastest stands out."""
    if row.kind == "hybrid":
        return BLUE
    return VERMILION if result.headline is not None and row.name == result.headline.baseline else GREY


def _bars(ax: Axes, values: Sequence[float], colours: Any, label: str) -> None:
    ax.barh(range(len(values)), values, color=colours, height=0.66)
    ax.set_xlabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _memory(ax: Axes, rows: Sequence[Row], budget: int | None) -> None:
    """Both memories of each process, one bar beside the other, with the budget as a line."""
    ram, vram = [row.ram or 0 for row in rows], [row.vram or 0 for row in rows]
    places = range(len(rows))
    ax.barh([at - 0.17 for at in places], ram, color=ORANGE, height=0.32, label="RAM")
    if budget is not None:
        ax.barh([at + 0.17 for at in places], vram, color=SKY, height=0.32, label="GPU")
        ax.axvline(budget, color=VERMILION, linewidth=1, linestyle=":", label="budget")
    size_ticks(ax.xaxis, max([*ram, *vram, budget or 0]))
    ax.xaxis.set_major_formatter(lambda value, _: short_size(value))
    ax.set_xlabel("memory of the process")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
