"""Results in figures: by what was damaged or done, how many ended how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from knocks.campaign import Result
from knocks.pool import BAD

COLUMNS = ("done", "refused", "usage")
SAID = {
    "fuzz": "damaged inputs",
    "kill -9": "kill -9",
    "full disk": "full disk",
    "folder removed": "folder removed underneath",
    "file cut": "mapped file cut short",
    "signal": "signal",
    "two at once": "two commands at once",
    "folder": "folder of another, read-only, or unreadable",
}


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Counts by group, target and kind, and what a case took."""
    groups: dict[str, dict[str, Counter[str]]] = {}
    for result in results:
        group, target = placed(result.target)
        groups.setdefault(group, {}).setdefault(target, Counter())[result.kind] += result.count
    return {
        "groups": {group: {name: dict(kinds) for name, kinds in targets.items()} for group, targets in groups.items()},
        "seeds": sorted({result.seed for result in results if result.seed}),
        "bad": [f"seed {r.seed} case {r.case}: {r.target}, {r.kind}" for r in results if r.kind in BAD],
    }


def placed(target: str) -> tuple[str, str]:
    """Group and name of a result's target."""
    group, colon, name = target.partition(": ")
    if not colon:
        return "fuzz", target
    return ("folder", f"{name} ({group.removesuffix(' folder')})") if group.endswith(" folder") else (group, name)


def markdown(figures: dict[str, Any]) -> str:
    """A sentence with the totals, and a table for each group."""
    lines = []
    for group, targets in figures["groups"].items():
        total = sum(sum(kinds.values()) for kinds in targets.values())
        bad = sum(count for kinds in targets.values() for kind, count in kinds.items() if kind in BAD)
        lines += [f"**{SAID.get(group, group)}**: {total:,} cases, {bad} ended badly.", ""]
        lines += [
            "| | cases | a result, or the signal's end | refused (1) | usage (2) | badly |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, kinds in targets.items():
            good = [kinds.get(column, 0) for column in COLUMNS]
            whole = sum(kinds.values())
            cells = [name, f"{whole:,}", *(f"{count:,}" for count in good), f"{whole - sum(good):,}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()
