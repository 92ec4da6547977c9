"""The shipped model, prepared once per run (or taken from HYBRID_CACHE, where `make demo` left it)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this run: the one that HYBRID_CACHE names, else a temporary one, never the user's own."""
    os.environ.setdefault("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Path(os.environ["HYBRID_CACHE"])


@pytest.fixture(scope="session")
def demo(cache_folder: Path) -> Path:
    """The demo's model directory, packed and profiled. Read it only; change a `demo_copy`."""
    from hybrid.stages.demo import demo_directory

    return demo_directory()


@pytest.fixture
def demo_copy(demo: Path, tmp_path: Path) -> Path:
    """A model directory of one's own."""
    return Path(shutil.copytree(demo, tmp_path / "demo-copy"))


@pytest.fixture(scope="session")
def heldout() -> str:
    """Text that the demo model has never seen."""
    from hybrid.stages.shipped import HELDOUT_TEXT

    lines = HELDOUT_TEXT.read_bytes().splitlines()
    return "".join(json.loads(line)["text"] for line in lines)
