"""The two solvers that run an integer program: HiGHS in process, CBC as a program of its own.

What a solver says of its result is read from the solver itself: PuLP calls a search that ran out of time "Optimal".
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pulp

from placement.problem import Choice, PlacementProblem
from placement.programs import Program, build_program

MipSolver = Literal["highs", "cbc"]
CBC = Path(pulp.PULP_CBC_CMD.pulp_cbc_path)
HAS_INCUMBENT = 2  # highspy's kSolutionStatusFeasible
# No program here is unbounded, as no cost is negative.
RESULT = (
    r"^(?:Result - )?"
    r"(Optimal|Problem \w+ infeasible|Linear relaxation infeasible|Pre-processing says infeasible|"
    r"Stopped on time limit)"
)
CBC_ROUNDING = 5e-4  # its log gives bounds to three decimals


@dataclass(frozen=True)
class Outcome:
    """What a solver found. bound: a cost that no placement falls below, None where it has none."""

    ended: Literal["optimal", "infeasible", "time limit"]
    choice: Choice | None
    bound: float | None


def available_solvers() -> tuple[MipSolver, ...]:
    """The solvers of this machine, the preferred one first."""
    found: list[MipSolver] = []
    if pulp.HiGHS().available():
        found.append("highs")
    if pulp.COIN_CMD(path=str(CBC)).available():
        found.append("cbc")
    return tuple(found)


def run_solver(
    problem: PlacementProblem,
    solver: MipSolver,
    time_limit: float,
    spare: float = 0.0,
    start: Choice | None = None,
    enough: float = -math.inf,
) -> Outcome:
    """Solve within `time_limit` seconds, from a known choice where there is one.

    spare: how much less than the answer another choice may cost. A share of the cost would mean nothing to solvers:
    PuLP keeps the objective's constant from them. enough: a cost at which to stop, as a bound from elsewhere proves it
    good.

    Raises:
        Exception: of any kind, where the solver crashes, is killed or answers what cannot be read.
    """
    program = build_program(problem)
    if solver == "highs":
        status, found, bound = _run_highs(program, time_limit, spare / program.unit, start, enough)
    else:
        status, found, bound = _run_cbc(program, time_limit, spare / program.unit, start)
    choice = program.choice(problem) if found else None
    if "infeasible" in status.lower():
        return Outcome("infeasible", None, None)
    cost = None if bound is None else bound * program.unit
    if status in ("Optimal", "Objective target reached", "Target for objective reached") and choice is not None:
        return Outcome("optimal", choice, cost)
    if "time limit" in status.lower():
        return Outcome("time limit", choice, cost)
    raise ValueError(f"the solver ended with {status!r}")


class _Started(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS with a start, which PuLP does not hand on."""

    start: list[tuple[Any, float]]

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 - PuLP's name
        if self.start:
            places = np.array([variable.index for variable, _ in self.start], dtype=np.int32)
            lp.solverModel.setSolution(len(places), places, np.array([value for _, value in self.start]))
        lp.solverModel.run()


def _run_highs(
    program: Program, time_limit: float, spare: float, start: Choice | None, enough: float
) -> tuple[str, bool, float | None]:
    constant = float(program.model.objective.constant)
    target = {"objective_target": enough / program.unit - constant} if math.isfinite(enough) else {}
    solver = _Started(msg=False, timeLimit=time_limit, gapRel=0.0, gapAbs=spare, **target)
    solver.start = program.values(start) if start else []
    program.model.solve(solver)
    highs = program.model.solverModel
    info = highs.getInfo()
    bound = float(info.mip_dual_bound) + constant if math.isfinite(info.mip_dual_bound) else None
    return highs.modelStatusToString(highs.getModelStatus()), info.primal_solution_status == HAS_INCUMBENT, bound


def _run_cbc(program: Program, time_limit: float, spare: float, start: Choice | None) -> tuple[str, bool, float | None]:
    for variable, value in program.values(start) if start else []:
        variable.setInitialValue(value)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        solver = pulp.COIN_CMD(
            path=str(CBC),
            msg=False,
            timeLimit=time_limit,
            gapRel=0.0,
            gapAbs=spare,
            logPath=str(log),
            warmStart=start is not None,
        )
        solver.tmpDir = folder
        program.model.solve(solver)
        status, found, bound = read_cbc_log(log.read_text(errors="replace"))
    constant = float(program.model.objective.constant)
    return status, found, None if bound is None else bound + constant


def read_cbc_log(text: str) -> tuple[str, bool, float | None]:
    """How a search of CBC ended, whether it found a choice, and its bound, all from its log.

    Raises:
        ValueError: the log holds no result.
    """
    result = re.search(RESULT, text, re.MULTILINE)
    if result is None:
        raise ValueError("CBC's log holds no result")
    objective = re.search(r"^Objective value:\s+(\S+)", text, re.MULTILINE)
    bound = re.search(r"^Lower bound:\s+(\S+)", text, re.MULTILINE)
    if bound:
        return result[1], objective is not None, float(bound[1]) - CBC_ROUNDING
    # With no gap left the log gives no bound: the objective is it.
    return result[1], objective is not None, float(objective[1]) if objective and result[1] == "Optimal" else None
