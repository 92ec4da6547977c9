"""The sdist and the wheel: what they hold, and that each works in an environment of its own, away from the checkout.

An environment has nothing but the distributions that the metadata asks for, linked from this one: what is used without
being declared is missing there.
"""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hybrid

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def declared(path):
    """The distributions that a wheel's metadata asks for, those included that these ask for in turn."""
    with zipfile.ZipFile(path) as wheel:
        text = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    waiting = [(Requirement(line), "") for line in re.findall(r"^Requires-Dist: (.+)$", text, re.M)]
    found = {}
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        distribution = found[name] = metadata.distribution(name)
        for line in distribution.requires or []:
            waiting += [(Requirement(line), e) for e in ("", *requirement.extras)]
    return found.values()


def environment(folder, distributions):
    """A new environment with these distributions linked into it; its folder of commands."""
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in distributions:
        for name in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    return folder / "bin"


def run(*command, where):
    """A command's output, run from a folder that has no source, with no path of this process and a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=where,
        env={**kept, "HYBRID_CACHE": str(where / "cache"), "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel), the wheel made of the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, where=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_has_the_sources_and_nothing_that_was_made(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert built[0].name == f"hybrid_inference-{hybrid.__version__}.tar.gz"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {f for f in tracked if f.startswith(("hybrid/", "placement/", "profiler/", "tests/", "scripts/"))}
    assert ours <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "PKG-INFO"} <= names
    assert not [
        n for n in names if n.endswith(".so") or n.startswith(("build", ".venv", ".git/")) or "__pycache__" in n
    ]


def test_the_wheel_has_the_packages_with_their_data_and_no_sources_in_c(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        text = archive.read(f"hybrid_inference-{hybrid.__version__}.dist-info/METADATA").decode()
    assert {n.partition("/")[0] for n in names if ".dist-info" not in n} == {"hybrid", "placement", "profiler"}
    assert not [n for n in names if n.endswith((".cpp", ".hpp")) or n.startswith("tests")]
    data = [
        p.relative_to(ROOT) for package in ("hybrid", "placement", "profiler") for p in (ROOT / package).rglob("*.*")
    ]
    skipped = ("hybrid/ops/native/", "hybrid/ops/_native.")
    wanted = {str(p) for p in data if "__pycache__" not in p.parts and not str(p).startswith(skipped)}
    assert wanted <= names
    assert len([n for n in names if re.fullmatch(r"hybrid/ops/_native\..*\.so", n)]) == 1
    assert "License-Expression: Apache-2.0" in text


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_works_away_from_the_checkout(built, kind, tmp_path):
    bin_folder = environment(tmp_path / "env", declared(built[1]))
    where = tmp_path / "elsewhere"
    where.mkdir()
    python, command = bin_folder / "python", bin_folder / "hybrid"
    run(python, "-m", "pip", "install", "--no-deps", built[0] if kind == "sdist" else built[1], where=where)
    assert "env/lib" in run(python, "-c", "import hybrid; print(hybrid.__file__)", where=where)
    assert run(command, "run", "demo", "def parse_args(", "-n", "8", where=where).startswith("def parse_args(")
    assert "rows on the gpu" in run(command, "plan", "demo", "--vram", "7MiB", "--explain", where=where)
    run(command, "run", "demo", "class Stack:", "-n", "8", "--plan", "default", "--second-device", "cpu", where=where)
    run(command, "inspect", "demo", "--verify", where=where)
