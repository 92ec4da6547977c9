"""`hybrid doctor`: what this machine and this installation are, part by part, and what to change about them.

Each check looks at the thing itself: the extension is loaded, the solvers solve, the drive is read. One that fails in a
way that nobody foresaw is reported as broken, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybrid.stages.doctor_installation import cache_folder, extension, hardware_figures, packages, solvers, the_name
from hybrid.stages.doctor_machine import Finding, drive, gpu, memory, threads, triton
from profiler.artifacts import UserError

Status = Literal["ok", "could be better", "broken"]
Look = Callable[[], Finding]


@dataclass(frozen=True)
class Check:
    """One part. found: what it is; change: what to do about it, None where nothing is to be done."""

    name: str
    status: Status
    found: str
    change: str | None


@dataclass(frozen=True)
class DoctorReport:
    """All parts. broken: something does not work that models need."""

    checks: tuple[Check, ...]
    broken: bool


def looks(directory: Path | None, read_drive: bool) -> dict[str, Look]:
    """What is looked at, by name, in order. directory: on the drive to read, None for the cache folder's."""
    found: dict[str, Look] = {
        "packages": packages,
        "the name hybrid": the_name,
        "extension": extension,
        "threads": threads,
        "memory": memory,
        "GPU": gpu,
        "Triton": triton,
        "solvers": solvers,
        "cache": cache_folder,
        "figures": hardware_figures,
    }
    if read_drive:
        found["drive"] = lambda: drive(directory)
    return found


def examine(looks: dict[str, Look], tell: Callable[[int, int], None] = lambda done, total: None) -> DoctorReport:
    """Look at each part; `tell(done, total)` in parts."""
    checks: list[Check] = []
    for name, look in looks.items():
        checks.append(_check(name, look))
        tell(len(checks), len(looks))
    return DoctorReport(tuple(checks), is_broken(checks))


def is_broken(checks: Sequence[Check]) -> bool:
    """Whether something does not work that models need."""
    return any(check.status == "broken" for check in checks)


def _check(name: str, look: Look) -> Check:
    try:
        finding = look()
    except UserError as error:
        return Check(name, "broken", str(error), None)
    except Exception as error:  # whatever a part dies of, it is what is to be reported
        return Check(name, "broken", f"{type(error).__name__}: {error}", None)
    status: Status = "broken" if finding.broken else "could be better" if finding.better else "ok"
    return Check(name, status, finding.found, finding.broken or finding.better or finding.advice)
