"""Hard knocks: damaged files, kills, full disks, vanished folders, signals.

    python scripts/hard_knocks.py fuzz --cases 10000 --results build/knocks/fuzz.jsonl [--seed 1] [--workers 2]
"""
from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from knocks.campaign import campaign, read_results, run_one, prepared, import_everything
from knocks.pool import BAD, Limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "show"))
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/hybrid-knocks"))
    parser.add_argument("--results", type=Path, default=Path("build/knocks/fuzz.jsonl"))
    args = parser.parse_args()
    os.environ["HYBRID_CACHE"] = str(args.scratch / "cache")
    if args.what == "show":
        import_everything()
        print(run_one(args.seed, args.first, prepared(args.scratch), args.scratch, Limits(), keep=True))
        return
    args.results.parent.mkdir(parents=True, exist_ok=True)
    campaign(args.seed, range(args.first, args.first + args.cases), args.results, args.workers, args.scratch)
    found = read_results(args.results)
    print(Counter(r.kind for r in found))
    for r in found:
        if r.kind in BAD:
            print(r.case, r.target, r.kind, r.code, r.seconds, r.said[-300:].strip().replace("\n", " | "))


if __name__ == "__main__":
    main()
