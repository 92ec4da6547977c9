"""Hard knocks: whatever a user's files, options and machine do, a command ends with a result or one line that says why.

    python scripts/hard_knocks.py fuzz --cases 10000 [--seed 1] [--workers 2]    damaged files, options and requests
    python scripts/hard_knocks.py points [--only kills]                          kills, full disks, signals and so on
    python scripts/hard_knocks.py show --seed 1 --case 1023                      one case again, its files kept
    python scripts/hard_knocks.py again                                          those that ended badly, again
    python scripts/hard_knocks.py summary benchmarks/hard-knocks.json            the figures of all results
    python scripts/hard_knocks.py table benchmarks/hard-knocks.json              the same as Markdown

Results are lines of JSON in --folder; what is there is not run again, so a campaign can be stopped and goes on. Cases
run in processes that are forked from one with everything imported, on files in --scratch, which should be in memory.
Full disks are mounted and need root; system calls are counted on x86-64 Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that are forked shall have one thread

from knocks import company, points
from knocks.campaign import campaign, import_everything, prepared, read_results, run_one
from knocks.figures import markdown, summary
from knocks.pool import BAD, Limits

HINDRANCES = {
    "kills": points.kills,
    "full-disks": points.full_disks,
    "vanishing": points.vanishing,
    "shrinking": points.shrinking,
    "signals": points.signals,
    "servers": company.servers,
    "together": company.together,
    "unwritable": company.unwritable,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "points", "show", "again", "summary", "table"))
    parser.add_argument("file", type=Path, nargs="?", help="of summary and table")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--case", type=int, default=0, help="the first one, or the one to show")
    parser.add_argument("--step", type=int, default=1, help="from one case to the next: neighbours are of one kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=tuple(HINDRANCES))
    parser.add_argument("--most", type=int, help="points of each kind")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/hybrid-knocks"))
    parser.add_argument("--folder", type=Path, default=Path("build/knocks"))
    return parser.parse_args()


def main() -> int:
    """Do what the command line says; 1 where a case ended badly."""
    args = arguments()
    fuzzed = args.folder / "fuzz.jsonl"
    if args.what == "table":
        print(markdown(json.loads(args.file.read_text())))
        return 0
    if args.what == "summary":
        found = [result for path in sorted(args.folder.glob("*.jsonl")) for result in read_results(path)]
        args.file.write_text(json.dumps(summary(found), indent=1) + "\n")
        return 0
    args.scratch = args.scratch.resolve()  # commands run in folders of their own
    os.environ |= {"HYBRID_CACHE": str(args.scratch / "cache"), "HF_HUB_OFFLINE": "1"}
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "fuzz":
        cases = range(args.case, args.case + args.cases * args.step, args.step)
        campaign(args.seed, cases, fuzzed, args.workers, args.scratch)
        return tell(fuzzed)
    import_everything()
    bases = prepared(args.scratch)
    if args.what == "show":
        print(run_one(args.seed, args.case, bases, args.scratch, Limits(), keep=True))
        return 0
    if args.what == "again":
        results = read_results(fuzzed)
        mended = [run_one(r.seed, r.case, bases, args.scratch, Limits()) if r.kind in BAD else r for r in results]
        fuzzed.write_text("".join(json.dumps(asdict(result)) + "\n" for result in mended))
        return tell(fuzzed)
    code = 0
    for name in (args.only,) if args.only else HINDRANCES:
        path = args.folder / f"{name}.jsonl"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            with unfinished.open("w") as file:
                for result in islice(HINDRANCES[name](bases, args.scratch), args.most):
                    file.write(json.dumps(asdict(result)) + "\n")
                    file.flush()
            unfinished.rename(path)
        code |= tell(path)
    return code


def tell(path: Path) -> int:
    """Show what ended badly."""
    results = read_results(path)
    bad = [result for result in results if result.kind in BAD]
    print(f"{path.stem}: {len(results)} cases, {len(bad)} ended badly", flush=True)
    for result in bad:
        print(f"seed {result.seed} case {result.case}, {result.target}: {result.kind}, {result.code}\n{result.said}")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
