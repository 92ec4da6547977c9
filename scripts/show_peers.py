"""Print what `bench_peers.py` wrote as Markdown tables: speeds, and where the time of a decode step goes.

python scripts/show_peers.py benchmarks/cpu-llama-1b.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEADER = (
    "| weights | contender | tokens/s | over llama.cpp | needed/token | GB/s | of the floor | then | "
    "prefill over llama.cpp |"
)

KINDS = ("linear", "head", "feed-forward", "predictors", "attention")
SHARES_HEADER = f"| weights | contender | {' | '.join(KINDS)} | rest | interpreter |"
SHARES_ALIGNMENT = "|---|---|" + "--:|" * (len(KINDS) + 2)


def rows(body: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A line for each format and contender."""
    lines = []
    for weight_format, contenders in body.items():
        for name, row in contenders.items() if weight_format != "machine" else ():
            if name == "prefill":
                continue
            lines.append(
                f"| {weight_format} | {name} | {row['tokens_per_second']:.1f} | {row['ratio']:.2f}x | "
                f"{row['bytes_per_token'] / 1e6:.0f} MB | {row['gigabytes_per_second']:.1f} | "
                f"{row['floor_share']:.0%} | {row['floor_share_of_the_moment']:.0%} | {row['prefill_ratio']:.2f}x |"
            )
    return lines


def share_rows(body: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A line for each format and contender that tells its operators' shares of a decode step.

    "rest": the other native operators. Each is a median over rounds, so that a line's sum may miss 100 % a little.
    """
    lines = []
    for weight_format, contenders in body.items():
        for name, row in contenders.items() if weight_format != "machine" else ():
            if name == "prefill" or "operators" not in row:
                continue
            shares = [row["operators"].get(kind, 0.0) for kind in KINDS]
            rest = sum(share for kind, share in row["operators"].items() if kind not in KINDS)
            cells = [f"{share:.1%}" for share in (*shares, rest, row["interpreter_share"])]
            lines.append(f"| {weight_format} | {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """The table of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    body = json.loads(parser.parse_args().file.read_text())
    print(HEADER, "|---|---|--:|--:|--:|--:|--:|--:|--:|", *rows(body), sep="\n")
    if shares := share_rows(body):
        print(
            "\nShares of a decode step's time:\n",
            SHARES_HEADER,
            "|---|---|" + "--:|" * (len(KINDS) + 2),
            *shares,
            sep="\n",
        )
    machine = body["machine"]
    options, first = machine["options"], next(iter(body.values()))
    print(
        f"\n{machine['preset']}, {options['threads']} threads, {first['predicted']['about']['isa']}, read bandwidth "
        f"{machine['bandwidth_gigabytes_per_second']:.1f} GB/s at best; medians of {options['rounds']} rounds of "
        f"{options['tokens']} tokens; prefill of {options['prefill']}"
    )


if __name__ == "__main__":
    main()
