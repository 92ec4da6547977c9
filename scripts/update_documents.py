"""Run the commands that the documents show and put their real output in, and the sources that they quote.

    python scripts/update_documents.py README.md BENCHMARKS.md docs/tutorial.md
    python scripts/update_documents.py docs/placement.md --only-code

`scripts/documents/reading.py` says which comments own what.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from documents.reading import BACKGROUND, BLOCK, CODE, FRESH, TABLE, source_of
from documents.session import CHECKOUT, Session, session


def with_sources(text: str) -> str:
    """The document with the sources that it quotes as they are now."""
    return CODE.sub(lambda m: f"{m['mark']}```python\n{source_of(CHECKOUT / m['file'], m['name'])}\n```", text)


def with_outputs(text: str, only: str) -> str:
    """The document with what its commands print now, of those in which `only` is found."""
    with session(FRESH in text) as here:
        forms = {"block": BLOCK, "table": TABLE, "background": BACKGROUND}
        found = [(m.start(), kind, m) for kind, form in forms.items() for m in form.finditer(text)]
        for _, kind, match in sorted(found, key=lambda one: one[0]):
            if re.search(only, match["command"]):
                text = text.replace(match[0], replaced(here, kind, match), 1)
    return text


def replaced(here: Session, kind: str, match: re.Match[str]) -> str:
    """A block with what its command prints."""
    command = match["command"]
    print(f"$ {command}", flush=True)
    output = here.start(command) if kind == "background" else here.run(command)
    if kind == "table":
        return f"{match[1]}\n{output}\n\n{match[4]}"
    return f"{match['mark']}```console\n$ {command}\n{output}\n```"


def main() -> None:
    """Rewrite the documents that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--only", default="", help="run only commands in which this pattern is found")
    parser.add_argument("--only-code", action="store_true", help="put sources in, and run nothing")
    args = parser.parse_args()
    for document in args.documents:
        text = with_sources(document.read_text(encoding="utf-8"))
        try:
            document.write_text(text if args.only_code else with_outputs(text, args.only), encoding="utf-8")
        except RuntimeError as error:
            raise SystemExit(f"{document}: {error}") from error


if __name__ == "__main__":
    main()
