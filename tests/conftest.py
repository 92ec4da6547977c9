"""The shipped model, prepared once per run (or taken from HYBRID_CACHE, where `make demo` left it), and commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels run under its interpreter then
    os.environ.setdefault("TRITON_INTERPRET", "1")

Command = Callable[..., tuple[int, str, str]]


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


@pytest.fixture
def hybrid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`hybrid(*arguments) -> (exit code, stdout, stderr)`, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from hybrid import cli

        monkeypatch.setattr(sys, "argv", ["hybrid", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, shown.out, shown.err

    return run


@pytest.fixture
def refused(hybrid: Command) -> Callable[..., str]:
    """`refused(*arguments) -> message` of a command that must fail with one clear error."""

    def run(*arguments: object) -> str:
        code, out, err = hybrid(*arguments)
        assert code == 1
        assert out == ""
        assert err.startswith("hybrid: ")
        assert "Traceback" not in err
        return err

    return run
