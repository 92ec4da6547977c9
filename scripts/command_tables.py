"""Tables of docs/command-line.md, made from the commands themselves.

python scripts/command_tables.py commands   # what there is, and an example of each
python scripts/command_tables.py options    # what each command takes
python scripts/command_tables.py codes      # exit codes
python scripts/command_tables.py results    # what --json prints
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.cli import COMMANDS, loaded
from hybrid.exits import Exit

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schemas"
MEANINGS = {
    Exit.DONE: "done; also where nobody reads the output any more, as in `hybrid ... \\| head`",
    Exit.ERROR: "an error, which one line on stderr explains; `hybrid doctor` found something broken",
    Exit.USAGE: "wrong usage: a command, option or value that does not exist, or options that contradict each other",
    Exit.INTERRUPTED: "interrupted (SIGINT, Ctrl-C)",
}


def commands() -> Iterator[tuple[str, Any]]:
    """(words, command) of every command, in the order of `hybrid --help`."""
    for name in COMMANDS:
        command = loaded(name)
        below = getattr(command, "commands", {})
        if not below:
            yield name, command
        for inner in below:
            yield f"{name} {inner}", below[inner]


def examples(command: Any) -> list[str]:
    """Command lines that the help of a command shows."""
    found = re.findall(r"^Example: (.+(?:\n(?!\n).+)*)", command.help or "", re.MULTILINE)
    return [" ".join(one.split()) for one in found]


def first_words(command: Any) -> str:
    """The first sentence of a command's help."""
    return " ".join((command.help or "").split("\n\n")[0].split())


def cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return text.replace("|", "\\|")


def command_rows() -> Iterator[list[str]]:
    """What there is, and an example of each."""
    yield ["command", "what it does", "for example"]
    for name, command in commands():
        yield [f"`hybrid {name}`", cell(first_words(command)), f"`{cell(examples(command)[0])}`"]


def option_rows() -> Iterator[list[str]]:
    """What each command takes; options that several commands have are named once."""
    yield ["option", "of", "what it says"]
    seen: dict[tuple[str, str], list[str]] = {}
    for name, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and option.name not in ("help", "install_completion"):
                words = ", ".join(f"`{word}`" for word in sorted(option.opts, key=len))
                seen.setdefault((words, cell(" ".join((option.help or "").split()))), []).append(name)
    for (words, said), names in seen.items():
        yield [words, ", ".join(names), said]


def code_rows() -> Iterator[list[str]]:
    """Exit codes."""
    yield ["code", "means"]
    for code, said in MEANINGS.items():
        yield [str(int(code)), said]


def result_rows() -> Iterator[list[str]]:
    """Names of results, the commands that print them, and their fields."""
    yield ["schema", "fields"]
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        fields = ", ".join(f"`{name}`" for name in schema["properties"] if name != "schema")
        yield [f"[`{schema['title']}`](schemas/{path.name})", fields]


TABLES = {"commands": command_rows, "options": option_rows, "codes": code_rows, "results": result_rows}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    header, *rows = TABLES[parser.parse_args().table]()
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
