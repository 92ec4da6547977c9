"""What is missing to build is said in one line with its package; the build of torch is the one that was asked for."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "bash", "uname", "id", "tr", "sed", "dirname", "env", "echo", "cat")
posix = pytest.mark.skipif(sys.platform != "linux", reason="packages are named for Linux")


@pytest.fixture
def bare(tmp_path):
    """`bare(name, ...)`: the PATH of a machine with these tools and the usual small ones alone."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(*names):
        for name in (*TOOLS, *names):
            if not (folder / name).exists():
                (folder / name).symlink_to(shutil.which(name) or "/bin/true")
        return str(folder)

    return make


def ask(path, *arguments, **environment):
    done = subprocess.run(
        ["sh", str(ROOT / "scripts/requirements.sh"), *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@posix
@pytest.mark.parametrize(
    ("manager", "command"),
    [("apt-get", "apt-get install g++"), ("dnf", "dnf install gcc-c++"), ("pacman", "pacman -S gcc")],
)
def test_a_missing_compiler_is_one_line_with_its_package(bare, manager, command):
    status, said = ask(bare(manager), sys.executable)
    assert status == 1
    assert said.count("\n") == 1 and "a C++17 compiler missing" in said and said.rstrip().endswith(command)


@posix
def test_all_that_is_missing_is_in_the_line(bare):
    status, said = ask(bare("apt-get"), "/nowhere/python3")
    assert status == 1
    assert "Python 3.10 or later, a C++17 compiler missing" in said
    assert said.rstrip().endswith("apt-get install python3 python3-venv python3-dev g++")


@posix
def test_nothing_is_said_where_nothing_is_missing(bare):
    assert ask(bare("g++"), sys.executable) == (0, "")
    assert ask(bare("g++"), sys.executable, CXX="g++ -O2") == (0, "")
    assert ask(bare("g++"), sys.executable, CXX="/nowhere/c++")[0] == 1


@posix
@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_cmake_ends_with_that_line(bare, tmp_path, missing):
    path = bare("apt-get", "cmake", *(() if missing == "compiler" else ("g++", "make", "as", "ld")))
    command = ["cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}"]
    if missing == "compiler":
        command.append("-DCMAKE_MAKE_PROGRAM=/bin/true")
    else:
        command.append("-DPython_INCLUDE_DIR=/nowhere")
    done = subprocess.run(list(map(str, command)), env={"PATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip().startswith("hybrid: ")]
    package = "g++" if missing == "compiler" else f"python3.{sys.version_info[1]}-dev"
    assert len(lines) == 1 and lines[0].endswith(f"apt-get install {package}"), done.stderr


def wheel_of_torch(folder, kind):
    """A distribution named torch that has only the file in which torch says what it was built for."""
    folder.mkdir()
    version = "2.13.0+cpu" if kind == "cpu" else "2.13.0"
    text = f"from typing import Optional\ncuda: Optional[str] = {None if kind == 'cpu' else '13.0'!r}\n"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr("torch/version.py", text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "torch").mkdir()
    (folder / "torch" / "index.html").write_text(
        "".join(f'<a href="../{p.name.replace("+", "%2B")}">{p.name}</a>' for p in folder.glob("*.whl"))
    )
    return folder.as_uri()


@posix
@pytest.mark.timeout(900)
def test_the_build_of_torch_is_the_one_asked_for_and_replaced_when_another_is(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    indexes = {
        "TORCH_INDEX": wheel_of_torch(tmp_path / "own", "cpu"),
        "PIP_INDEX_URL": wheel_of_torch(tmp_path / "pypi", "cuda"),
        "PIP_CONFIG_FILE": os.devnull,
        "PATH": os.environ["PATH"],
    }

    def install(kind):
        command = ["bash", str(ROOT / "scripts/install_torch.sh"), str(python), kind]
        done = subprocess.run(command, env=indexes, capture_output=True, text=True, timeout=600)
        shown = subprocess.run(
            [python, "-c", "import torch.version as v; print(v.cuda)"], capture_output=True, text=True
        ).stdout
        return done.returncode, shown.strip(), done.stderr

    assert install("auto")[:2] == ((0, "None") if not shutil.which("nvidia-smi") else (0, "13.0"))
    assert install("cuda")[:2] == (0, "13.0")
    assert install("auto")[:2] == (0, "13.0"), "what is there stays"
    assert install("cpu")[:2] == (0, "None")
    status, _, errors = install("gpu")
    assert status == 2 and "not gpu" in errors
    indexes["PIP_INDEX_URL"] = indexes["TORCH_INDEX"]
    status, _, errors = install("cuda")
    assert status == 1 and "not for cuda" in errors
