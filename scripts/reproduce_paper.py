"""Rebuild the papers' rows with this project's cost model, from the papers' own figures of machines and models.

    python scripts/reproduce_paper.py                 # ours, theirs, the factor between them
    python scripts/reproduce_paper.py --sensitivity   # the same with other inputs where those are uncertain
    python scripts/reproduce_paper.py --inputs        # every input with its source

Nothing is run or measured here. All inputs stand in placement/papers.json. Engines are plans: llama.cpp is the first
layers on the GPU, PowerInfer a split of each layer's neurons. Two constants are fitted, on one row; no other row is
adjusted.
"""

from __future__ import annotations

import argparse

from papers.inputs import Inputs
from papers.rows import reproduce
from papers.tables import as_json, inputs_table, notes, rows_table, sensitivity_table, show, summary

from profiler.artifacts import UserError


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sensitivity", action="store_true", help="constants, median and misses with other inputs")
    what.add_argument("--inputs", action="store_true", help="every input with its source")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--markdown", action="store_true", help="a table for a document")
    args = parser.parse_args()
    inputs = Inputs.published()
    try:
        if args.json:
            print(as_json(inputs, args.sensitivity, args.inputs))
        elif args.sensitivity:
            print(show(sensitivity_table(inputs), args.markdown))
        elif args.inputs:
            print(show(inputs_table(inputs), args.markdown))
        else:
            found = reproduce(inputs)
            print(show(rows_table(found), args.markdown))
            print("\n" + "\n\n".join([summary(found), *notes(inputs, found, args.markdown)]))
    except UserError as error:
        raise SystemExit(f"reproduce_paper: {error}") from error


if __name__ == "__main__":
    main()
