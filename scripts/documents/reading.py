"""What a document says can be typed: every command in it, and every block that a command or a source file owns.

Comments own what follows them:

    <!-- run: COMMAND -->            a fenced block: `$ COMMAND` and what it prints, stdout and stderr together
    <!-- run as table: COMMAND -->   Markdown that the command prints, up to <!-- end -->
    <!-- run in background: COMMAND -->   the same of a server, which goes on until the document ends
    <!-- code: FILE NAME -->         a fenced block: the source of a function, class or assignment
    <!-- in a fresh folder -->       commands run one after another in an empty folder, with an empty cache
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Where = Literal["marker", "block", "inline"]

FENCE = r"```\w*\n(?P<body>(?:.*?\n)??)```"
BLOCK = re.compile(rf"(?P<mark><!-- run: (?P<command>[^\n]+?) -->\n){FENCE}", re.DOTALL)
BACKGROUND = re.compile(rf"(?P<mark><!-- run in background: (?P<command>[^\n]+?) -->\n){FENCE}", re.DOTALL)
TABLE = re.compile(r"(<!-- run as table: (?P<command>[^\n]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
CODE = re.compile(rf"(?P<mark><!-- code: (?P<file>\S+) (?P<name>\S+) -->\n){FENCE}", re.DOTALL)
FRESH = "<!-- in a fresh folder -->"
PROGRAMS = (
    "hybrid", "python", "python3", "pip", "make", "curl", "git", "docker", "apt-get", "sudo", "brew", "export", "cd",
    "bash", "source", ".venv/bin/pip", ".venv/bin/hybrid", "scripts/", "npx", "pytest", "mkdir", "cat",
)  # fmt: skip
ASSIGNED = re.compile(r"^(?:[A-Z_]+=\S+ )+")
COMMENT = re.compile(r"\s+# .*$")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Documented:
    """A command in a document. where: in a comment that owns a block, in a fenced block, or within a sentence."""

    document: Path
    line: int
    command: str
    where: Where


@dataclass(frozen=True)
class Shown:
    """A command and the output that a document shows of it."""

    command: str
    output: str
    background: bool = False


def commands(document: Path) -> list[Documented]:
    """Every command of a document, in its order."""
    found: list[Documented] = []
    fenced, joined = False, ""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if mark := re.match(r"<!-- run(?: as table| in background)?: (.+?) -->", line):
            found.append(Documented(document, number, mark[1], "marker"))
        elif line.startswith("```"):
            fenced, joined = not fenced, ""
        elif fenced:
            text = joined + line.strip().removeprefix("$ ")
            joined = text[:-1].rstrip() + " " if text.endswith("\\") else ""
            if not joined and _is_command(text):
                found.append(Documented(document, number, COMMENT.sub("", text), "block"))
        else:
            for span in SPAN.findall(line):
                if _is_command(span) and " " in span and "…" not in span:
                    found.append(Documented(document, number, span, "inline"))
    return found


def shown(document: Path) -> list[Shown]:
    """The commands that own a block, with that block's output, in the document's order."""
    text = document.read_text(encoding="utf-8")
    found = [(m.start(), _shown(m, False)) for m in BLOCK.finditer(text)]
    found += [(m.start(), _shown(m, True)) for m in BACKGROUND.finditer(text)]
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def source_of(file: Path, name: str) -> str:
    """The source of a top-level function, class or assignment, or of `Class.method`, without its docstring.

    Raises:
        KeyError: the file has nothing of that name.
    """
    source = file.read_text(encoding="utf-8")
    lines, body = source.splitlines(), ast.parse(source).body
    for part in name.split("."):
        node = next((node for node in body if part in _names(node)), None)
        if node is None:
            raise KeyError(f"{file} has no {name}")
        body = getattr(node, "body", [])
    assert node is not None, "a name has a part"
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    kept = list(range(first, (node.end_lineno or first) + 1))
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        text = node.body[0]
        last = text.end_lineno or 0
        last += last < len(lines) and not lines[last].strip()  # the blank line after it too
        kept = [line for line in kept if not text.lineno <= line <= last]
    taken = [lines[line - 1] for line in kept]
    margin = len(taken[0]) - len(taken[0].lstrip())
    return "\n".join(line[margin:] for line in taken)


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_command(text: str) -> bool:
    bare = ASSIGNED.sub("", text)
    return "──▶" not in text and any(bare.startswith(name if name.endswith("/") else f"{name} ") for name in PROGRAMS)


def _shown(match: re.Match[str], background: bool) -> Shown:
    _, _, output = match["body"].partition("\n")
    return Shown(match["command"], output.rstrip("\n"), background)
