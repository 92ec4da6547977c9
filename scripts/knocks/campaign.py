"""Runs cases on several cores and keeps how each ended: a campaign that is stopped goes on where it was."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

from knocks import targets
from knocks.bases import Bases, make_bases
from knocks.folders import snapshot
from knocks.pool import Limits, Outcome, in_child, run_case, run_commands, wait

SKIPPED = ("hybrid.demo", "hybrid.ops.kernels", "hybrid.ops.cuda", "hybrid.stages.peers")


@dataclass(frozen=True)
class Result:
    """One case and how it ended. count: damaged inputs in it. said, commands: of those that ended badly."""

    seed: int
    case: int
    target: str
    kind: str
    code: int | None
    seconds: float
    count: int = 1
    said: str = ""
    commands: tuple[tuple[str, ...], ...] = ()


def import_everything() -> None:
    """So that children need not: all of the packages, and what commands load when they need it."""
    import torch

    torch.set_num_threads(1)
    for package in ("profiler", "placement", "hybrid"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not module.name.startswith(SKIPPED):
                importlib.import_module(module.name)
    from hybrid.cli import COMMANDS, loaded

    for name in COMMANDS:
        loaded(name)
    for name in ("matplotlib.pyplot", "rich.progress", "llguidance", "highspy", "pulp"):
        importlib.import_module(name)


def prepared(folder: Path) -> Bases:
    """The bases, made in a process of its own: this one shall have no threads when it forks."""
    folder.mkdir(parents=True, exist_ok=True)
    child = in_child(lambda: _make(folder / "bases"), folder / "stdout", folder / "stderr", None)
    found = wait(child, 600)
    if found is None or found[0]:
        raise SystemExit(f"no bases: {(folder / 'stderr').read_text()}")
    return Bases(folder / "bases")


def _make(folder: Path) -> None:
    make_bases(folder)


def run_one(
    seed: int, case: int, bases: Bases, scratch: Path, limits: Limits, keep: bool = False, again: bool = False
) -> Result:
    """One case, in a folder that is made for it and removed."""
    target, rng = targets.numbered(case), Random(f"{seed}/{case}")
    folder = Path(tempfile.mkdtemp(prefix=f"case-{case}-", dir=scratch))
    try:
        made = target.make(folder, rng, bases)
        before = snapshot(made.kept)
        outcome = run_case(made.work or partial(run_commands, made.commands), folder, limits, made.stdin)
        if outcome.kind == "hang" and not again:  # the machine may have stood still
            return run_one(seed, case, bases, scratch, limits, keep, again=True)
        outcome = look_after(outcome, made, before, folder)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    bad = outcome.kind not in ("done", "refused", "usage")
    commands = tuple(tuple(command) for command in made.commands) if bad else ()
    said = outcome.said if bad else ""
    seconds = round(outcome.seconds, 3)
    return Result(seed, case, target.name, outcome.kind, outcome.code, seconds, made.count, said, commands)


def look_after(outcome: Outcome, made: targets.Case, before: dict[str, object], folder: Path) -> Outcome:
    """The outcome, or what is wrong with the files that the commands left."""
    if outcome.kind not in ("done", "refused", "usage"):
        return outcome
    after = snapshot(made.kept)
    changed = sorted(
        name
        for name in set(before) | set(after)
        if before.get(name, 0) != after.get(name, 0) and not any(part in name for part in made.written)
    )
    if changed:
        return Outcome("damage", outcome.code, outcome.seconds, f"changed: {changed[:5]}\n{outcome.said}")
    remains = [str(path) for path in folder.rglob("*") if ".partial-" in path.name]
    if remains:
        return Outcome("remains", outcome.code, outcome.seconds, f"left: {remains[:5]}\n{outcome.said}")
    return outcome


def campaign(
    seed: int, cases: Iterable[int], results: Path, workers: int, scratch: Path, limits: Limits | None = None
) -> None:
    """Run cases that `results`, a file of JSON lines, does not have yet."""
    limits = limits or Limits()
    import_everything()
    bases = prepared(scratch)
    done = {(r.seed, r.case) for r in read_results(results)}
    waiting = [case for case in cases if (seed, case) not in done]
    gc.freeze()  # pages that children share are not written to by a collector that looks through them
    children = []
    for worker in range(workers):
        child = os.fork()
        if not child:
            with results.open("a", encoding="utf-8") as file:
                for case in waiting[worker::workers]:
                    file.write(json.dumps(asdict(run_one(seed, case, bases, scratch, limits))) + "\n")
                    file.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"a worker ended with {os.waitstatus_to_exitcode(status)}")


def read_results(path: Path) -> list[Result]:
    """Results of a file of JSON lines; none where there is no file. A line that was cut by a kill is passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Result(**json.loads(line)))
        except ValueError:
            continue
    return found
