"""The command line as it is documented: tables are what the commands say, examples are what they take."""

import re
import shlex
import subprocess
import sys

import pytest
from command_tables import TABLES, commands, examples

from hybrid.cli import COMMANDS, app

BLOCK = re.compile(r"<!-- run as table: python scripts/command_tables.py (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
ALL = dict(commands())


def test_the_document_has_what_the_commands_say(scripts):
    text = (scripts.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
    blocks = dict(BLOCK.findall(text))
    assert blocks.keys() == TABLES.keys()
    for name, table in blocks.items():
        header, *rows = TABLES[name]()
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
        mend = "make it anew with: python scripts/update_documents.py docs/command-line.md"
        assert table.strip().splitlines() == lines, mend


@pytest.mark.parametrize("name", ALL)
def test_examples_are_command_lines_that_are_taken(name):
    command, found = ALL[name], examples(ALL[name])
    assert found and any(example.split()[:1] == ["hybrid"] for example in found)
    for example in found:
        for part in re.split(r"\s\|\s", example):
            words = shlex.split(part)
            while "=" in words[0]:  # a variable of the environment
                words.pop(0)
            if words[0] != "hybrid":
                assert words[0] in ("echo", "curl"), "others may not be there"
                continue
            mine = name.split()
            given = words[1:] if words[1 : 1 + len(mine)] == mine else [mine[0], *mine[1:], *words[2:]]
            with command.make_context(name, given[len(mine) :]) as context:
                assert context.params, "parsed, not run"


def test_every_command_is_listed_once_and_in_the_order_of_use():
    done = subprocess.run([sys.executable, "-m", "hybrid", "--help"], capture_output=True, text=True)
    shown = re.findall(r"^  ([a-z-]+)  +[A-Z]", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert (done.returncode, shown) == (0, list(COMMANDS))


# Of another command, of the engine, and what draws and validates in colours: `--help` is somebody waiting.
HEAVY = {"torch", "numpy", "scipy", "pulp", "rich", "jinja2", "asyncio", "safetensors", "tokenizers", "transformers"}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_little(name):
    words = [name] if name else []
    command = [sys.executable, "-X", "importtime", "-m", "hybrid", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "hybrid.exits" in loaded
    assert not {module.partition(".")[0] for module in loaded} & HEAVY
    assert not [module for module in loaded if module.startswith(("hybrid.stages.", "hybrid.runtime", "placement."))]
    if name:
        others = {f"hybrid.{module}" for module, _ in COMMANDS.values()} - {f"hybrid.{COMMANDS[name][0]}"}
        assert not loaded & others, "only what is asked for"


def test_versions():
    done = subprocess.run([sys.executable, "-m", "hybrid", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert re.fullmatch(r"hybrid \d+\.\d+\.\d+\S*", first)
    assert [line.split()[0] for line in others][:2] == ["python", "torch"]
    assert app.info.no_args_is_help
