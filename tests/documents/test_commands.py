"""Every command in every document: it exists with its options, and where nothing runs it, a reason is listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents.checking import documents, problem_of
from documents.reading import Documented, commands, shown
from documents.session import CHECKOUT
from documents.unrun import REPLAYED, UNRUN, is_exact, reason_of

PLACES = {"README.md": "README.md"}
ALL = [command for document in documents() for command in commands(document)]


def test_there_are_commands_to_check():
    assert len(ALL) > 100
    assert {"README.md", "tutorial.md", "measuring.md", "server.md"} <= {command.document.name for command in ALL}


def test_every_command_can_be_typed_as_it_stands():
    problems = [f"{c.document.name}:{c.line}: {c.command}: {problem}" for c in ALL if (problem := problem_of(c))]
    assert not problems, "\n".join(problems)


def test_what_no_test_runs_has_a_reason():
    run = {(name, one.command) for name in REPLAYED for one in shown(CHECKOUT / PLACES.get(name, f"docs/{name}"))}
    alone = [
        c
        for c in ALL
        if c.where != "inline"
        and (c.document.name, c.command) not in run
        and not is_exact(c.command)
        and reason_of(c) is None
    ]
    assert not alone, "\n".join(f"{c.document.name}:{c.line}: {c.command}" for c in alone)


def test_no_reason_outlives_its_command():
    for (document, beginning), reason in UNRUN.items():
        found = [c for c in ALL if c.document.name == document and c.command.startswith(beginning)]
        assert found, f"{document} has no command that begins with {beginning!r}; it was listed since {reason}"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("hybrid rnu demo x", "no command rnu"),
        ("hybrid run demo x --tempperature 1", "tempperature"),
        ("hybrid run demo x --mode sparse", "sparse"),
        ("hybrid plan demo --objective", "objective"),
        ("python scripts/no_such.py", "no scripts/no_such.py"),
        ("python scripts/measure_sharing.py demo --no-such-option", "no-such-option"),
        ("make everything", "everything"),
        ("pip install 'hybrid-inference[nothing]'", "nothing"),
    ],
)
def test_a_command_that_is_wrong_is_found(command, named):
    assert named in (problem_of(Documented(Path("a.md"), 1, command, "block")) or "")


def test_links_lead_somewhere():
    import re

    for document in documents():
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
