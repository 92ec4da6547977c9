"""The result as Markdown: what was measured on, and a table for each thing that grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growth.cases import MODES

Row = dict[str, Any]
Body = dict[str, Any]
PEER = "llama.cpp"


def markdown(body: Body) -> str:
    """All tables of a result."""
    tables = body["tables"]
    parts = [introduction(body)]
    for weight_format in dict.fromkeys(row["weight_format"] for row in tables.get("sparsity", [])):
        rows = [row for row in tables["sparsity"] if row["weight_format"] == weight_format]
        parts += [f"**Sparsity, {weight_format}**", by_sparsity(rows, body["peer"].get(weight_format))]
    if rows := tables.get("context"):
        parts += [f"**Context, {at(rows)}**: tokens in the KV cache, in f16", by_context(rows)]
    if rows := tables.get("batch"):
        parts += [f"**Batch, {at(rows)}**: sequences decoded together, tokens/s of all and of each", by_batch(rows)]
    if rows := tables.get("overshoot"):
        parts += [f"**Predictors, {at(rows)}**: rows they name over rows that fire", by_overshoot(rows)]
    return "\n\n".join(parts)


def introduction(body: Body) -> str:
    """What the figures were measured on, and how disturbed they were."""
    machine, settings, shape = body["machine"], body["settings"], body["shape"]
    rows = [row for table in body["tables"].values() for row in table]
    return (
        f"{body['preset']} with {shape['layers']} layers and {shape['vocab']} tokens of vocabulary, "
        f"{threads_of(body)}, "
        f"{machine['isa']}, memory {machine['bandwidth_gigabytes_per_second']:.1f} GB/s. Medians of "
        f"{settings['rounds']} rounds of {settings['tokens']} tokens; in the most disturbed case others took "
        f"{max(row['disturbance'] for row in rows):.0%} of a processor. *Floor*: speed over that of a program that is "
        "bound by reading what the step needs, once, at that bandwidth."
    )


def threads_of(body: Body) -> str:
    """The number of threads, in words."""
    threads = body["settings"]["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}"


def at(rows: Sequence[Row]) -> str:
    """What all rows have in common."""
    return f"{rows[0]['weight_format']}, {percent(rows[0]['sparsity'])} sparse"


def by_sparsity(rows: Sequence[Row], peer: Row | None) -> str:
    """Speeds of the modes, each over dense; over llama.cpp too where it was measured."""
    dense = next((row for row in rows if row["mode"] == "dense"), None)
    bases = [(name, row) for name, row in (("dense", dense), (PEER, peer)) if row is not None]
    modes = [mode for mode in MODES if mode != "dense" and any(row["mode"] == mode for row in rows)]

    def cells(row: Row) -> list[str]:
        return [*speed(row), *(f"{row['tokens_per_second'] / base['tokens_per_second']:.2f}" for _, base in bases)]

    heads = [
        f"{word}" for mode in modes for word in (f"{mode}, tokens/s", "floor", *(f"x {name}" for name, _ in bases))
    ]
    points = points_of(rows, "sparsity", modes)
    lines = [[percent(value), *(c for mode in modes for c in cells(found[mode]))] for value, found in points.items()]
    empty = [""] * (len(heads) - 2 - len(bases))
    lines += [[f"any, {name}", *cells(row), *empty] for name, row in bases]
    return table(["sparsity", *heads], lines)


def by_context(rows: Sequence[Row]) -> str:
    """Speeds of the modes."""
    modes = modes_of(rows)
    points = points_of(rows, "context", modes)
    heads = [word for mode in modes for word in (f"{mode}, tokens/s", "floor")]
    lines = [[f"{value:,}", *(c for mode in modes for c in speed(found[mode]))] for value, found in points.items()]
    return table(["context", *heads], lines)


def by_batch(rows: Sequence[Row]) -> str:
    """Speeds of the modes, and of one sequence in each."""
    modes = modes_of(rows)
    points = points_of(rows, "batch", modes)

    def cells(row: Row) -> list[str]:
        total, floor = speed(row)
        return [total, f"{row['tokens_per_second_of_each_sequence']:.1f}", floor]

    heads = [word for mode in modes for word in (f"{mode}, all", "each", "floor")]
    lines = [[str(value), *(c for mode in modes for c in cells(found[mode]))] for value, found in points.items()]
    return table(["batch", *heads], lines)


def by_overshoot(rows: Sequence[Row]) -> str:
    """Speed, and the rows that were read and that fired."""
    lines = [
        [f"{row['overshoot']:g}x", *speed(row), f"{row['read']:.1%}", f"{row['active']:.1%}"]
        for row in sorted(rows, key=lambda row: float(row["overshoot"]))
    ]
    return table(["named", "predicted, tokens/s", "floor", "rows read", "rows that fire"], lines)


def modes_of(rows: Sequence[Row]) -> list[str]:
    """The modes that were measured, cheapest first."""
    return [mode for mode in MODES if any(row["mode"] == mode for row in rows)]


def points_of(rows: Sequence[Row], axis: str, modes: Sequence[str]) -> dict[float, dict[str, Row]]:
    """Value of the axis -> mode -> row, in rising order, where all modes were measured."""
    points: dict[float, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: float(row[axis])):
        points.setdefault(row[axis], {})[row["mode"]] = row
    return {value: found for value, found in points.items() if set(modes) <= set(found)}


def speed(row: Row) -> list[str]:
    """Tokens per second, and the share of the floor."""
    return [f"{row['tokens_per_second']:.1f}", f"{row['floor_share']:.0%}"]


def percent(share: float) -> str:
    """A share, without digits that say nothing."""
    return f"{100 * share:g} %"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, figures to the right."""
    rule = ["---:"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *lines])
