"""The commands that are hindered, and what has to hold then: the directory works, and the command can be repeated."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hybrid.store.files import ModelFiles
from knocks.bases import Bases
from knocks.pool import Limits, run_case, run_commands
from profiler.profile import read_profile

PATIENT = Limits(240.0)
STALE = ".partial-"


@dataclass(frozen=True)
class Job:
    """A command in a folder of its own. begin: fills the folder. line: the command. model: the directory, within it.

    uses: commands that have to work whenever the directory is there, the job done or not.
    """

    name: str
    begin: Callable[[Bases, Path], None]
    line: Callable[[Bases, Path], Sequence[str]]
    model: str = "model"
    uses: tuple[tuple[str, ...], ...] = ()

    def work(self, bases: Bases, folder: Path) -> Callable[[], None]:
        """What a process does to run the command."""
        return partial(run_commands, [list(self.line(bases, folder))])

    def problems(self, bases: Bases, folder: Path, scratch: Path, expected: str | None = None) -> list[str]:
        """What is wrong after the command was hindered: with the directory, and with the command when it is repeated.

        expected: what the digest of a packed directory has to be in the end.
        """
        found, model = [], folder / self.model
        packed = self.name == "pack"
        if model.exists():
            found += self._unusable(model, scratch)
        elif not packed:
            return ["the directory is gone"]
        if not (packed and model.exists()):
            again = run_case(self.work(bases, folder), scratch, PATIENT)
            if again.kind != "done":
                found.append(f"repeated, it ended as {again.kind}: {again.said[-300:]}")
            found += self._unusable(model, scratch)
        left = [str(path) for path in folder.rglob("*") if STALE in path.name or path.name.endswith(".unfinished")]
        if left:
            found.append(f"left behind: {left[:3]}")
        if packed and not found and expected is not None and digest(model) != expected:
            found.append("the result is another one than that of a run without hindrance")
        if not packed and not found and not in_order(model):
            found.append("the rows are not in the order of the profile")
        return found

    def _unusable(self, model: Path, scratch: Path) -> list[str]:
        lines = [[word.replace("MODEL", str(model)) for word in line] for line in self.uses]
        used = run_case(partial(run_commands, lines), scratch, PATIENT)
        return [] if used.kind == "done" else [f"the directory does not work ({used.kind}): {used.said[-300:]}"]


def in_order(model: Path) -> bool:
    """Whether the hottest rows of the profile come first, in every layer."""
    files = ModelFiles.open_files(model)
    if not files.has_profile("default"):
        return True
    profile = read_profile(files.profile_path("default"))
    return all((files.neuron_ids(i) == profile.hottest_first(i)).all() for i in range(profile.layers))


def digest(model: Path) -> str:
    """Of all files of a directory, by name."""
    whole = hashlib.sha256()
    for path in sorted(model.rglob("*")):
        if path.is_file():
            whole.update(str(path.relative_to(model)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def copied(name: str) -> Callable[[Bases, Path], None]:
    """Begins with a copy of a base, as `model`."""

    def begin(bases: Bases, folder: Path) -> None:
        shutil.copytree(getattr(bases, name), folder / "model")

    return begin


VERIFY = ("inspect", "MODEL", "--verify")
RUN = ("run", "MODEL", "def f(", "-n", "2", "--threads", "1")
PLANNED = (*RUN, "--plan", "default", "--second-device", "cpu")
PROFILE = ("--rank", "4", "--steps", "5", "--name", "default")
PACK = Job(
    "pack",
    lambda bases, folder: None,
    lambda bases, folder: ("pack", str(bases.llama), str(folder / "model"), "--format", "q8_0"),
    uses=(VERIFY, RUN),
)
PROFILED = Job(
    "profile",
    copied("packed"),
    lambda bases, folder: ("profile", str(folder / "model"), "--text", str(bases.texts / "text.txt"), *PROFILE),
    uses=(VERIFY, RUN),
)
PLAN = Job(
    "plan",
    copied("model"),
    lambda bases, folder: ("plan", str(folder / "model"), "--vram", "16000", "--second-device", "cpu"),
    uses=(VERIFY, PLANNED),
)
GENERATE = Job(
    "run",
    copied("model"),
    lambda bases, folder: ("run", str(folder / "model"), "def f(", "-n", "100", "--threads", "1", "--context", "120"),
    uses=(VERIFY, RUN),
)
EVALUATE = Job(
    "eval",
    copied("model"),
    lambda bases, folder: (
        "eval",
        str(folder / "model"),
        "--text",
        str(bases.texts / "third.txt"),
        "--tokens",
        "300",
        "--threads",
        "1",
    ),
    uses=(VERIFY, RUN),
)
