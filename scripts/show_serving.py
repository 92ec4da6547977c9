"""Print what `bench_serving.py` wrote as Markdown tables.

python scripts/show_serving.py benchmarks/serving-llama-1b.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.latency import quantile

KINDS = ("linear", "head", "feed-forward", "predictors", "attention")


def batching_rows(formats: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each format, mode and number of requests at once."""
    for name, parts in formats.items():
        for mode, figures in parts.get("batching", {}).items():
            together = figures["together"]
            one = next(iter(together.values()))
            for count, of in together.items():
                spent = {kind: statistics.median(r[kind] for r in of["operators"]) for kind in of["operators"][0]}
                outside = statistics.median(of["outside"])
                shares = [spent.get(kind, 0.0) for kind in KINDS]
                rest = sum(spent.values()) - sum(shares)
                yield (
                    f"| {name} | {mode} | {count} | {statistics.median(of['rate']):.1f} | "
                    f"{spread(of['rate'], one['rate'])} | {statistics.median(of['decode_rate']):.1f} | "
                    f"{spread(of['decode_rate'], one['decode_rate'])} | "
                    + " | ".join(f"{value:.2f}" for value in (*shares, rest, outside))
                    + " |"
                )


def latency_rows(formats: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each format: gaps of all rounds."""
    for name, parts in formats.items():
        if rounds := parts.get("latency"):
            alone = [gap for of in rounds for gap in of["alone"]]
            beside = [gap for of in rounds for gap in of["beside"]]
            median = quantile(alone, 0.5)
            cells = [median, quantile(alone, 0.99), quantile(beside, 0.5), quantile(beside, 0.99), max(beside)]
            yield (
                f"| {name} | {' | '.join(f'{1e3 * cell:.1f}' for cell in cells)} | "
                f"{quantile(beside, 0.99) / median:.2f}x | {statistics.median(of['seconds'] for of in rounds):.1f} |"
            )


def http_rows(formats: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each format and number of clients; ratios are medians over rounds."""
    for name, parts in formats.items():
        for count, of in parts.get("http", {}).items():
            rates = {way: [r["tokens"] / r["seconds"] for r in rounds] for way, rounds in of.items()}
            pairs = zip(of["library"], of["http"], strict=True)
            cost = statistics.median(h["seconds"] / h["tokens"] - lib["seconds"] / lib["tokens"] for lib, h in pairs)
            cells = [
                name,
                count,
                f"{statistics.median(rates['library']):.1f}",
                f"{statistics.median(rates['http']):.1f}",
            ]
            cells += [f"{1e3 * cost:+.2f} ms", f"{over(rates['library'], rates['http']) - 1:+.1%}"]
            firsts = [f"{statistics.median(r['first_seconds'] for r in of['http']):.2f}"]
            if "peer" in rates:
                cells += [f"{statistics.median(rates['peer']):.1f}", f"{over(rates['http'], rates['peer']):.2f}x"]
                firsts += [f"{statistics.median(r['first_seconds'] for r in of['peer']):.2f}"]
            else:
                cells, firsts = [*cells, "", ""], [*firsts, ""]
            yield f"| {' | '.join([*cells, *firsts])} |"


def table(words: str, columns: Sequence[str], rows: Iterator[str]) -> Iterator[str]:
    """A table and what it is of; nothing without rows."""
    if lines := list(rows):
        yield words
        yield f"| {' | '.join(columns)} |"
        yield "|---|" + "--:|" * (len(columns) - 1)
        yield from lines


def over(some: list[float], others: list[float]) -> float:
    """Median over the rounds of one over the other."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def spread(some: list[float], others: list[float]) -> str:
    """The median, least and greatest of one over the other."""
    ratios = [a / b for a, b in zip(some, others, strict=True)]
    between = f" ({min(ratios):.1f}-{max(ratios):.1f})" if min(ratios) < max(ratios) else ""
    return f"{over(some, others):.2f}x{between}"


def tables(body: dict[str, Any]) -> Iterator[str]:
    """All lines."""
    formats = {name: parts for name, parts in body.items() if name != "machine"}
    machine = body["machine"]
    options = machine["options"]
    rates = ("tokens/s", "over one", "decoding", "over one")
    yield from table(
        "Requests at once through `LLM.generate`: tokens/s of the whole call and of decoding alone, without\n"
        "prompts, each over one request's; milliseconds behind each generated token by operator:\n",
        ("weights", "mode", "requests", *rates, *KINDS, "rest", "outside"),
        batching_rows(formats),
    )
    yield from table(
        f"\nMilliseconds between two tokens of {options['decoding']} decoding requests, alone, before and after, and\n"
        f"while {options['long']:,} tokens of a prompt are read beside them; *over*: p99 beside over median alone:\n",
        ("weights", "median alone", "p99 alone", "median beside", "p99 beside", "longest", "over", "prompt, s"),
        latency_rows(formats),
    )
    yield from table(
        "\nThe same requests through `LLM.generate`, over HTTP to `hybrid serve`, and over HTTP to llama_cpp.server,\n"
        "which computes one at a time: tokens/s of all clients; cost of HTTP for a token; seconds until text, mean:\n",
        ("weights", "clients", "library", "HTTP", "cost", "in %", "peer", "HTTP over it", "first, s", "its first, s"),
        http_rows(formats),
    )
    yield (
        f"\n{options['preset'] if options['model'] is None else options['model']}, {options['threads']} threads, "
        f"{machine['isa']}; medians of rounds in turn; prompts of {options['prompt']} tokens, "
        f"{options['tokens']} generated, {options['http_tokens']} over HTTP"
    )


def main() -> None:
    """The tables of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print("\n".join(tables(json.loads(parser.parse_args().file.read_text()))).strip())


if __name__ == "__main__":
    main()
