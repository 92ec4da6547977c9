"""Whether a documented command can be typed as it stands, found without running it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer

from documents.reading import ASSIGNED, Documented
from documents.session import CHECKOUT
from hybrid import cli
from hybrid.cli_profile import COUNT

OPTION = re.compile(r"--[a-z][a-z-]+")
EXTRAS = re.compile(r"\[([a-z,]+)\]")


def problem_of(documented: Documented) -> str | None:
    """What is wrong with a command, if anything: an unknown command, option, script, target, extra or choice."""
    text = ASSIGNED.sub("", documented.command.partition(" | ")[0]).removeprefix("sudo ").removeprefix(".venv/bin/")
    words = shlex.split(text.partition(" > ")[0].removesuffix(" &"))
    if words[0] == "hybrid":
        return _hybrid_problem(words[1:], whole=documented.where != "inline")
    script = next((word for word in words[:2] if word.startswith("scripts/")), None)
    if script is not None:
        return _script_problem(script, words)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"the Makefile has no {unknown}" if unknown else None
    if "install" in words:
        named = {extra for word in words for found in EXTRAS.findall(word) for extra in found.split(",")}
        settings = (CHECKOUT / "pyproject.toml").read_text()
        unknown = sorted(extra for extra in named if not re.search(rf"^{extra} = \[", settings, re.MULTILINE))
        return f"there is no extra {unknown}" if unknown else None
    return None


def _hybrid_problem(words: list[str], whole: bool) -> str | None:
    """As its own parser says it. A command within a sentence may leave out arguments, but has known options alone."""
    root = command = typer.main.get_command(cli.app)
    context = root.context_class(root, info_name="hybrid")
    while hasattr(command, "get_command") and words and (command is not root or not words[0].startswith("-")):
        found = command.get_command(context, words[0])
        if found is None and command is root:
            return f"there is no command {words[0]}"
        if found is None:  # `hybrid profile DIR` means one of the group's own
            found = command.get_command(context, COUNT)
            words = [COUNT, *words]
        context = found.context_class(found, info_name=words[0], parent=context)
        command, words = found, words[1:]
    if not whole:
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word for word in words if OPTION.fullmatch(word) and word not in {*known, "--help"}]
        return f"{command.name} has no option {unknown}" if unknown else None
    try:
        command.make_context(context.info_name, list(words), parent=context.parent)
    except Exception as error:  # which class, depends on where typer has click from
        if not hasattr(error, "format_message"):
            return None if type(error).__name__ == "Exit" else repr(error)
        return error.format_message()
    return None


def _script_problem(script: str, words: list[str]) -> str | None:
    """The script is there, and its source, or that of a part of it, has each option's name."""
    path = CHECKOUT / script
    if not path.is_file():
        return f"there is no {script}"
    parts = [path, *(p for p in path.parent.rglob("*.py") if p.parent != path.parent)]
    source = "".join(part.read_text() for part in parts)
    unknown = [word for word in words if OPTION.fullmatch(word) and f'"{word}"' not in source and word not in source]
    return f"{script} has no option {unknown}" if unknown else None


def documents() -> list[Path]:
    """Every document of the project."""
    return [*sorted(CHECKOUT.glob("*.md")), *sorted((CHECKOUT / "docs").glob("*.md"))]
