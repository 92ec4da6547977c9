"""Runs the Dockerfile's own steps without an engine for containers, and holds the result to what it promises.

    python scripts/container_steps.py FOLDER [--torch cpu|cuda] [--share PATH]... [--reuse]

Needs root, debootstrap and a mirror of Debian. Each `FROM debian:RELEASE-slim` becomes a minimal system in FOLDER; RUN,
COPY, ENV, ARG, USER, WORKDIR, ENTRYPOINT, CMD and HEALTHCHECK are read from the Dockerfile and carried out with chroot.
--share binds folders of this machine into the systems while steps run, such as one of wheels that pip's configuration
names. Then the image's command is started as its user: it must answer its health check and a completion, have no rights
beyond the volume, and end by SIGTERM with 0.

What only an engine does is not shown: layers, networks, the volume itself, `--gpus`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = re.compile(r"debian:([a-z]+)-slim(?: AS ([a-z]+))?")
# Of this machine, so that names resolve and pip finds its index there too.
OURS = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/apt/apt.conf.d")


@dataclass
class System:
    """A stage of the Dockerfile: its folder, and what its lines said so far."""

    folder: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    )
    user: str | None = None
    workdir: str = "/"
    words: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        """The command that runs something in this system as its user."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        change = ["chroot", *([f"--userspec={self.user}"] if self.user else []), str(self.folder)]
        inside = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(arguments)}"
        return ["env", "-i", *settings, *change, "/bin/sh", "-c", inside]


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of each line of a Dockerfile, without comments; lines that end in a backslash go on."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(name.upper(), rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines)]


def ignored() -> list[str]:
    """Patterns of .dockerignore."""
    return (ROOT / ".dockerignore").read_text().split()


def copy(system: System, rest: str, stages: dict[str, System]) -> None:
    """COPY [--from=STAGE] SOURCE DESTINATION, of one source."""
    origin, words = ROOT, shlex.split(rest)
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).partition("=")[2]].folder
    source, destination = origin / words[0].lstrip("/"), system.folder / words[1].lstrip("/")
    patterns = ignored() if origin == ROOT else []

    def skip(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(ROOT) if patterns else Path()
        return {
            n
            for n in names
            for p in patterns
            if fnmatch.fnmatch(str(here / n), p.removeprefix("**/"))
            or (p.startswith("**/") and fnmatch.fnmatch(n, p[3:]))
        }

    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, destination, ignore=skip, dirs_exist_ok=True, symlinks=True)
    else:
        shutil.copy2(source, destination)


def new_system(folder: Path, release: str) -> System:
    """A minimal Debian in a folder; one that a run before has made is removed, its packages are kept beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    kept = folder.parent / "packages"
    kept.mkdir(parents=True, exist_ok=True)
    subprocess.run(["debootstrap", "--variant=minbase", f"--cache-dir={kept}", release, folder], check=True)
    for name in map(Path, OURS):
        inside = folder / name.relative_to("/")
        if name.is_file():
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, inside)
        elif name.is_dir():
            shutil.copytree(name, inside, dirs_exist_ok=True)
    return System(folder)


class Shared:
    """Folders of this machine that systems see for as long as the block lasts, /proc and /dev among them."""

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self.places = [(path, folder / path.lstrip("/")) for path in ("/proc", "/dev", *paths)]

    def __enter__(self) -> None:
        for path, place in self.places:
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", "--make-rslave", path, place], check=True)

    def __exit__(self, *_: object) -> None:
        for _, place in reversed(self.places):
            subprocess.run(["umount", "--recursive", "--lazy", place], check=True)


def build(folder: Path, options: argparse.Namespace) -> System:
    """Carry out the Dockerfile; the system of its last stage."""
    stages: dict[str, System] = {}
    system = System(folder)
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        print(f"== {name} {rest}", flush=True)
        if name == "FROM":
            base = BASE.fullmatch(rest)
            assert base, f"{rest}: not a base that debootstrap makes"
            stage = base[2] or "image"
            make = new_system if not options.reuse else lambda path, _: System(path)
            system = stages[stage] = make(folder / stage, base[1])
        elif name == "RUN" and not options.reuse:
            with Shared(system.folder, options.share):
                subprocess.run(system.command("/bin/sh", "-c", rest), check=True)
        elif name == "COPY" and not options.reuse:
            copy(system, rest, stages)
        elif name == "ENV":
            system.environment.update(word.split("=", 1) for word in shlex.split(rest))
        elif name == "ARG":
            argument, _, default = rest.partition("=")
            system.environment[argument] = options.torch if argument == "TORCH" else default
        elif name == "USER":
            system.user = rest
        elif name == "WORKDIR":
            system.workdir = rest
        else:
            system.words[name] = rest
    return system


def check(system: System, options: argparse.Namespace) -> None:
    """Start the image's command as its user, ask it, and end it."""
    command = json.loads(system.words["ENTRYPOINT"]) + json.loads(system.words["CMD"])
    health = system.words["HEALTHCHECK"].partition("CMD ")[2]
    with Shared(system.folder, []):
        outside = f"! touch /opt/hybrid/mine /etc/mine 2>/dev/null && touch {system.workdir}/mine && id -u"
        user = subprocess.run(
            system.command("/bin/sh", "-c", outside), check=True, capture_output=True, text=True
        ).stdout
        assert user.strip() not in ("", "0"), "the user has rights"
        server = subprocess.Popen(system.command(*command))
        try:
            for _ in range(240):
                time.sleep(0.5)
                assert server.poll() is None, "the server ended"
                if subprocess.run(system.command("/bin/sh", "-c", health), capture_output=True).returncode == 0:
                    break
            else:
                raise AssertionError("the health check has failed for two minutes")
            body = json.dumps({"model": "demo", "prompt": "def parse_args(", "max_tokens": 8}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{system.words['EXPOSE']}/v1/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                print("answered:", json.load(answer)["choices"][0]["text"])
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(timeout=60)
    assert status == 0, f"the server ended with {status}"
    print(f"the steps of the Dockerfile work: user {user.strip()}, healthy, answers, ends with 0 ({options.torch})")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--share", action="append", default=[], help="a folder of this machine that steps may read")
    parser.add_argument("--reuse", action="store_true", help="only check what a run before has built in FOLDER")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("container_steps.py needs root and debootstrap (Debian: apt-get install debootstrap)")
    check(build(options.folder.resolve(), options), options)


if __name__ == "__main__":
    main()
