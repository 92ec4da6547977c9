"""Shell completion: in bash itself, in zsh and fish where they are, and what is completed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """#!{python}
from hybrid.__main__ import main
main()
"""


@pytest.fixture
def folder(demo, tmp_path, monkeypatch):
    """A working folder with two model directories, a folder called demo, and `hybrid` on the path."""
    for name in ("models/seven", "other model", "demo"):
        path = Path(shutil.copytree(demo, tmp_path / name, dirs_exist_ok=True))
        shutil.copy(path / "profiles" / "default.safetensors", path / "profiles" / "code.safetensors")
        shutil.rmtree(path / "plans")
        (path / "plans").mkdir()
        (path / "plans" / "small.json").write_text("{}")
    (tmp_path / "no-model").mkdir()
    command = tmp_path / "bin" / "hybrid"
    command.parent.mkdir()
    command.write_text(SCRIPT.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(words, shell="bash"):
    """What a shell is told of a line whose last word is incomplete."""
    line = " ".join(words)
    given = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, **given, "_HYBRID_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(["hybrid"], env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    return [line for line in done.stdout.split("\n") if line] if shell == "bash" else done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["hybrid", "ca"], ["calibrate", "cache"]),
        (["hybrid", "cache", ""], ["list", "clear"]),
        (["hybrid", "run", "d"], ["demo"]),
        (["hybrid", "run", "./"], ["./demo", "./other model"]),
        (["hybrid", "run", "models/"], ["models/seven"]),
        (["hybrid", "run", "models/seven", "x", "--plan", ""], ["small"]),
        (["hybrid", "eval", "--text", "f", "models/seven", "--profile", "c"], ["code"]),
        (["hybrid", "run", "no-model/"], []),
        (["hybrid", "run", "nowhere", "x", "--plan", ""], []),
        (["hybrid", "run", "demo", "x", "--kv-f"], ["--kv-format"]),
    ],
)
def test_what_is_completed(folder, words, found):
    assert completed(words) == found


def test_zsh_and_fish_are_told_the_same(folder):
    for shell in ("zsh", "fish"):
        told = completed(["hybrid", "run", "models/seven", "x", "--profile", "co"], shell)
        assert "code" in told and "default" not in told


def test_bash_completes(folder):
    """The script that --show-completion prints, in a real bash."""
    script = subprocess.run(["hybrid", "--show-completion", "bash"], capture_output=True, text=True).stdout
    if not script.startswith("_hybrid"):  # a typer that asks which shell it is called from
        script = subprocess.run(
            ["bash", "--norc", "-c", "hybrid --show-completion; true"],  # one command alone would take bash's place
            capture_output=True,
            text=True,
        ).stdout
    assert "_HYBRID_COMPLETE=complete_bash" in script
    (folder / "completion.bash").write_text(script)
    ask = "source completion.bash; COMP_WORDS=(hybrid inspect models/s); COMP_CWORD=2; _hybrid_completion hybrid; "
    done = subprocess.run(
        ["bash", "--norc", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == ["models/seven"], done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes(folder):
    script = subprocess.run(["fish", "-c", "hybrid --show-completion"], capture_output=True, text=True).stdout
    (folder / "completion.fish").write_text(script)
    ask = ["fish", "-c", "source completion.fish; complete -C 'hybrid inspect models/s'"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["models/seven"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(folder, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run(
        [shell, "-c", "hybrid --install-completion; exit"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    written = [path for path in (folder / "home").rglob("*") if path.is_file()]
    assert any("_HYBRID_COMPLETE" in path.read_text() for path in written)
