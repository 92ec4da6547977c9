"""Makes the texts in hybrid/texts, which `hybrid prepare` and `hybrid profile` use where no text is named.

    python scripts/broad_texts.py --declaration us-declaration.gz --constitution us-constitution.gz

Four kinds, each a file of JSON lines: `everyday` (questions, answers, letters, news, stories in eight languages) was
written for this project and is left as it is; `law` is the beginning of the Declaration of Independence and of the
Constitution of the United States, as Debian's package miscfiles has them; `reference` is prose of Python's language
reference; `code` is of Python's standard library, and this project's C++, JavaScript, CSS and shell.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "hybrid" / "texts"
SEED = 0
TOPICS_BYTES = 34_000
LAW_BYTES = 16_000  # of each
MODULES = ("textwrap.py", "bisect.py", "graphlib.py")
NOTICES = ("Copyright", "copyright")
OWN_CODE = (
    "hybrid/ops/native/pool.cpp",
    "hybrid/serving/static/words.js",
    "hybrid/serving/static/base.css",
    "scripts/sanitize.sh",
)


def write(kind: str, documents: list[tuple[str, str]]) -> None:
    """A file of JSON lines with `path` and `text`."""
    lines = [json.dumps({"path": path, "text": text}, ensure_ascii=False) + "\n" for path, text in documents]
    (TEXTS / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{kind}: {len(documents)} documents, {sum(map(len, lines)):,} characters", file=sys.stderr)


def own(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Files of this project that are there."""
    return [(name, (ROOT / name).read_text(encoding="utf-8")) for name in names if (ROOT / name).is_file()]


def reference() -> list[tuple[str, str]]:
    """Sections of Python's reference, drawn by lot."""
    names = sorted(topics)
    random.Random(SEED).shuffle(names)
    found, size = list[tuple[str, str]](), 0
    for name in names:
        if size + len(topics[name]) <= TOPICS_BYTES:
            found.append((f"python/{name}", topics[name]))
            size += len(topics[name])
    return found


def python_code() -> list[tuple[str, str]]:
    """Modules of the standard library that state no copyright but the Python Software Foundation's."""
    folder = Path(sysconfig.get_path("stdlib"))
    read = [(f"python/{name}", (folder / name).read_text(encoding="utf-8")) for name in MODULES]
    return [(name, text) for name, text in read if not any(notice in text for notice in NOTICES)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--declaration", type=Path, required=True)
    parser.add_argument("--constitution", type=Path, required=True)
    options = parser.parse_args()
    law = [
        (path.name.removesuffix(".gz"), gzip.decompress(path.read_bytes()).decode("latin-1")[:LAW_BYTES])
        for path in (options.declaration, options.constitution)
    ]
    write("law", law)
    write("reference", reference())
    write("code", [*python_code(), *own(OWN_CODE)])


if __name__ == "__main__":
    main()
