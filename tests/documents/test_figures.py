"""Figures and sources in the documents are what their commands and files give now."""

from __future__ import annotations

import pytest
from documents.checking import documents
from documents.reading import BLOCK, CODE, TABLE, source_of
from documents.session import CHECKOUT, session
from documents.unrun import QUICK, is_exact

SHOWN = {
    f"{path.name}: {match['command']}": (match["command"], match["body"].strip(), form is BLOCK)
    for path in documents()
    for form in (BLOCK, TABLE)
    for match in form.finditer(path.read_text())
    if is_exact(match["command"])
}
QUOTED = [(path, match) for path in documents() for match in CODE.finditer(path.read_text())]


def held(name):
    command, body, typed = SHOWN[name]
    with session(fresh=False) as here:
        assert here.run(command) == (body.partition("\n")[2] if typed else body)


@pytest.mark.parametrize("name", [name for name, (command, *_) in SHOWN.items() if command.startswith(QUICK)])
def test_what_prints_the_same_everywhere_is_what_the_document_shows(name):
    held(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (command, *_) in SHOWN.items() if not command.startswith(QUICK)])
def test_what_a_benchmark_wrote_is_what_the_document_shows(name):
    held(name)


@pytest.mark.parametrize(
    ("path", "match"), QUOTED, ids=[f"{path.name}: {match['file']} {match['name']}" for path, match in QUOTED]
)
def test_a_quoted_source_is_the_file_s(path, match):
    assert match["body"].rstrip("\n") == source_of(CHECKOUT / match["file"], match["name"]), (
        f"mend it with: python scripts/update_documents.py {path.relative_to(CHECKOUT)} --only-code"
    )
