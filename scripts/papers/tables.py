"""What is printed: tables for people and for documents, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from papers.inputs import Inputs
from papers.rows import WITHIN, Reproduction, reproduce
from profiler.artifacts import UserError

Table = list[tuple[str, ...]]


def show(table: Table, markdown: bool) -> str:
    """A table, its first row the heading; all columns but the first to the right where cells are short."""
    if markdown:
        head, *rest = table
        lines = [head, ("---",) + ("---:",) * (len(head) - 1) if _short(table) else ("---",) * len(head), *rest]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if not _short(table):
        return "\n".join(": ".join(line) for line in table[1:])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table]
    return "\n".join("  ".join(line) for line in lines)


def rows_table(found: Reproduction) -> Table:
    """Theirs, ours, the error and the factor, row by row."""
    table: Table = [("row", "figure", "theirs", "ours", "error", "factor")]
    for row in found.rows:
        judged = (f"{row.error:+.0%}", f"{row.factor:.2f}" + (" *" if row in found.missed else ""))
        cells = (row.name, row.quantity, f"{row.theirs:g}", _number(row.ours))
        table.append((*cells, *(("fitted", "fitted") if row.fitted else judged)))
    return table


def summary(found: Reproduction) -> str:
    """The constants and how well they do."""
    constants, tested = found.constants, found.tested
    within = len(tested) - len(found.missed)
    return (
        f"Fitted on the OPT-30B row: {constants.memory_share:.3f} of host memory's nominal bandwidth, "
        f"{constants.hand_over * 1e3:.2f} ms a hand-over. Of {len(tested)} rows that nothing was fitted on, {within} "
        f"are within a factor of {WITHIN:g}; the median error is {found.median_error:.0%}, the median factor "
        f"{found.median_factor:.2f}."
    )


def notes(inputs: Inputs, found: Reproduction, markdown: bool) -> list[str]:
    """Why rows miss, and what holds for all."""
    misses = [f"* {row.name}: {row.explanation}" for row in found.missed]
    general = [f"- {note}" for note in inputs.body["notes"]]
    return ["\n".join(misses), "\n".join(general)] if markdown else [*misses, *general]


def sensitivity_table(inputs: Inputs) -> Table:
    """What becomes of constants, median and misses with other inputs, each by itself, fitted anew."""
    table: Table = [("inputs", "share of memory", "hand-over", "median error", "worst factor", f"beyond {WITHIN:g}")]
    for name, found in _variants(inputs):
        if found is None:
            table.append((name, "no fit", "", "", "", ""))
            continue
        worst = max(row.factor for row in found.tested)
        constants = found.constants
        cells = (f"{constants.memory_share:.3f}", f"{constants.hand_over * 1e3:.2f} ms")
        table.append((name, *cells, f"{found.median_error:.0%}", f"{worst:.2f}", str(len(found.missed))))
    return table


def inputs_table(inputs: Inputs) -> Table:
    """Every group of inputs with its source; what holds for several machines or models stands once."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for name, part, group in groups(inputs.body):
        figures = ", ".join(f"{figure} {_value(value)}" for figure, value in group.items() if figure != "source")
        same.setdefault((part, figures, group["source"]), []).append(name)
    table: Table = [("of", "input", "source")]
    for (part, figures, source), names in same.items():
        table.append((", ".join(names), f"{part}: {figures}", source))
    return table


def groups(body: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every group of machines, models and workloads: whose it is, what it is of, and its figures."""
    for kind in ("machines", "models"):
        for name, parts in body[kind].items():
            for part, group in parts.items():
                for one in group if isinstance(group, list) else [group]:
                    yield name, part, one
    for name, group in body["workloads"].items():
        yield name, "workload", group


def as_json(inputs: Inputs, sensitivity: bool, sources: bool) -> str:
    """The same as one object."""
    if sources:
        return json.dumps(inputs.body, indent=1, ensure_ascii=False)
    if sensitivity:
        return json.dumps({name: found and _plain(found) for name, found in _variants(inputs)}, indent=1)
    return json.dumps(_plain(reproduce(inputs)), indent=1, ensure_ascii=False)


def _variants(inputs: Inputs) -> Iterator[tuple[str, Reproduction | None]]:
    yield "as given", reproduce(inputs)
    for alternative in inputs.body["alternatives"]:
        try:
            yield alternative["name"], reproduce(inputs.changed(alternative))
        except UserError:
            yield alternative["name"], None


def _plain(found: Reproduction) -> dict[str, Any]:
    rows = [{**asdict(row), "error": row.error, "factor": row.factor} for row in found.rows]
    medians = {"median_error": found.median_error, "median_factor": found.median_factor}
    return {"constants": asdict(found.constants), **medians, "rows": rows}


def _short(table: Sequence[tuple[str, ...]]) -> bool:
    return max(len(cell) for line in table for cell in line[1:]) < 30


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}" if value >= 100 else f"{value:.2f}"


def _value(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if value >= 1e6 else str(value)
