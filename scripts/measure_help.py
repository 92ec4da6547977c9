"""How long `--help` of each command takes, beyond the start of the interpreter: medians of several runs, in turn.

python scripts/measure_help.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from hybrid.cli import COMMANDS

CODE = "from hybrid.__main__ import main; main()"  # what the installed command runs


def seconds(*arguments: str) -> float:
    """What one run takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cases = [[], *([name] for name in COMMANDS)]
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        nothing = seconds("pass")
        times.setdefault("the interpreter alone", []).append(nothing)
        for words in cases:
            taken = seconds(CODE, *words, "--help") - nothing
            times.setdefault(" ".join(["hybrid", *words, "--help"]), []).append(taken)
    print("| beyond the interpreter's start | median, ms | most, ms |\n|---|---:|---:|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found) * 1e3:.0f} | {max(found) * 1e3:.0f} |")


if __name__ == "__main__":
    main()
