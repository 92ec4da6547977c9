"""What the documents show is done again, command by command: the same lines, whatever the figures in them.

Commands of `hybrid` run in this process, since torch loads once there; servers and what asks them, as a reader would.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from documents.reading import FRESH, shown
from documents.session import CHECKOUT, masked, session
from documents.unrun import is_exact

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the documents show a machine without a GPU")

# Lines that not every run has: by whichever command uses the demo first, and by a machine that takes its time.
SOMETIMES = ("packing the demo model", "a predictor trains in", "about ")


@pytest.fixture
def replay(hybrid, monkeypatch, tmp_path):
    """`replay(document)`: run its commands in order and compare each with what is shown of it."""

    def run(document: Path) -> int:
        fresh = FRESH in document.read_text()
        count = 0
        with session(fresh) as here:
            here.use_cache(here.cache or tmp_path / "cache")  # never the one that other tests read
            monkeypatch.setenv("HYBRID_CACHE", str(here.cache))
            monkeypatch.chdir(here.folder)
            for one in shown(document):
                if is_exact(one.command):  # tests/documents/test_figures.py
                    continue
                words = shlex.split(one.command)
                if one.background:
                    found = here.start(one.command)
                elif words[0] == "hybrid" and not set("|<>&") & set(one.command):
                    code, out, err = hybrid(*words[1:])
                    assert code == 0, f"{one.command}: {err}"
                    found = here.neutral(out + err)
                else:
                    found = here.run(one.command)
                lines, expected = (
                    sorted(line for line in masked(text) if not line.startswith(SOMETIMES))
                    for text in (found, one.output)
                )
                assert lines == expected, one.command
                count += 1
        return count

    return run


def test_the_readme(replay):
    assert replay(CHECKOUT / "README.md") == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)  # it profiles, calibrates and compares
def test_the_tutorial(replay):
    assert replay(CHECKOUT / "docs" / "tutorial.md") > 8


def test_the_first_ten_minutes(replay):
    assert replay(CHECKOUT / "docs" / "first-ten-minutes.md") > 5


def test_a_line_that_changed_is_seen():
    before = masked("3917.2 tokens/s; first token after 14 ms; rows: 782 on the cpu")
    assert before == masked("9.1 tokens/s; first token after 1.4 s; rows: 1,234 on the cpu")
    assert before != masked("3917.2 tokens/s; first token after 14 ms; rows: 782 on the gpu")
    assert masked("| a   | 1 |\n|-----|--:|") == masked("| a | 22.5 |\n|---|-----:|")
    assert masked("~/.cache/hybrid/demo-fb3b474cfd07/plans") == masked("~/.cache/hybrid/demo-a6697591bb92/plans")
