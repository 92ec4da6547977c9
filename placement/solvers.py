"""The paper's integer program in PuLP, and the two solvers that run it: HiGHS in process, CBC as a program.

What a solver says of its result is read from the solver itself: PuLP calls a search that ran out of time "Optimal".
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pulp

from placement.problem import Cuts, SplitProblem

MipSolver = Literal["highs", "cbc"]
CBC = Path(pulp.PULP_CBC_CMD.pulp_cbc_path)
HAS_INCUMBENT = 2  # highspy's kSolutionStatusFeasible
CBC_ROUNDING = 5e-4  # its log gives bounds to three decimals
Variables = list[list[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a solver found. bound: an impact that no split exceeds, None where it has none."""

    ended: Literal["optimal", "infeasible", "time limit"]
    cuts: Cuts | None
    bound: float | None


def available_solvers() -> tuple[MipSolver, ...]:
    """The solvers of this machine, the preferred one first."""
    found: list[MipSolver] = []
    if pulp.HiGHS().available():
        found.append("highs")
    if pulp.COIN_CMD(path=str(CBC)).available():
        found.append("cbc")
    return tuple(found)


def run_solver(problem: SplitProblem, solver: MipSolver, time_limit: float, gap: float) -> Outcome:
    """Solve within `time_limit` seconds or to a relative `gap`.

    Raises:
        Exception: of any kind, where the solver crashes, is killed or answers what cannot be read.
    """
    model, variables = build_model(problem)
    run = _run_highs if solver == "highs" else _run_cbc
    return run(model, variables, time_limit, gap)


def build_model(problem: SplitProblem) -> tuple[pulp.LpProblem, Variables]:
    """PowerInfer's program (§6.3) over groups, and its variables `[layers][groups]`, 1 where a group is on the GPU.

    maximise Σ v x; required ≤ Σ n x ≤ capacity; x_k ≥ x_{k+1} (prefixes); and where a layer has a least number of rows
    C, with y saying whether it uses the GPU, C y ≤ Σ n x ≤ |N| y. A layer that may not use it (y = 0) has no variables.
    Two cuts, implied by whole groups and prefixes, make that constraint tight in the relaxation: x_1 ≤ y, and y ≤ x_c
    for the fewest first groups, c, that hold C rows.
    """
    model = pulp.LpProblem("placement", pulp.LpMaximize)
    rows = [int(n) for n in problem.group_rows]
    variables: Variables = []
    for layer, least in enumerate(problem.least):
        groups = range(len(rows)) if least is not None else range(0)
        variables.append([model.add_variable(f"x_{layer}_{group}", cat=pulp.LpBinary) for group in groups])
    impact = (
        (x, float(v)) for xs, vs in zip(variables, problem.values, strict=True) for x, v in zip(xs, vs, strict=False)
    )
    model.setObjective(pulp.LpAffineExpression(list(impact)))
    held = pulp.LpAffineExpression([(x, n) for xs in variables for x, n in zip(xs, rows, strict=False)])
    # All totals are multiples of unit_rows; a capacity that is one too leaves the relaxation no fraction to use.
    model.addConstraint(held <= problem.capacity // problem.unit_rows * problem.unit_rows, "capacity")
    if problem.required:
        model.addConstraint(held >= problem.required, "required")
    for layer, xs in enumerate(variables):
        for hotter, colder in pairwise(xs):
            model.addConstraint(hotter >= colder)
        if least := problem.least[layer]:
            y = model.add_variable(f"y_{layer}", cat=pulp.LpBinary)
            in_layer = pulp.LpAffineExpression(list(zip(xs, rows, strict=True)))
            model.addConstraint(in_layer >= least * y)
            model.addConstraint(in_layer <= problem.layer_rows * y)
            model.addConstraint(xs[0] <= y)
            model.addConstraint(xs[problem.first_cut(layer) - 1] >= y)
    return model, variables


def _run_highs(model: pulp.LpProblem, variables: Variables, time_limit: float, gap: float) -> Outcome:
    model.solve(pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=gap))
    status = model.solverModel.modelStatusToString(model.solverModel.getModelStatus())
    info = model.solverModel.getInfo()
    found = info.primal_solution_status == HAS_INCUMBENT
    # PuLP hands HiGHS the negated objective, to minimise.
    bound = -float(info.mip_dual_bound) if math.isfinite(info.mip_dual_bound) else None
    return _outcome(status, _cuts(variables) if found else None, bound)


def _run_cbc(model: pulp.LpProblem, variables: Variables, time_limit: float, gap: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        solver = pulp.COIN_CMD(path=str(CBC), msg=False, timeLimit=time_limit, gapRel=gap, logPath=str(log))
        solver.tmpDir = folder
        model.solve(solver)
        text = log.read_text(errors="replace")
    status, found, bound = read_cbc_log(text)
    return _outcome(status, _cuts(variables) if found else None, bound)


def read_cbc_log(text: str) -> tuple[str, bool, float | None]:
    """How a search of CBC ended, whether it found a split, and its bound, all from its log.

    Raises:
        ValueError: the log holds no result.
    """
    result = re.search(r"^(?:Result - )?(Optimal|Problem \w+ infeasible|Stopped on time limit)", text, re.MULTILINE)
    if result is None:
        raise ValueError("CBC's log holds no result")
    objective = re.search(r"^Objective value:\s+(\S+)", text, re.MULTILINE)
    bound = re.search(r"^Upper bound:\s+(\S+)", text, re.MULTILINE)
    if bound:
        return result[1], objective is not None, float(bound[1]) + CBC_ROUNDING
    # With no gap left the log gives no bound: the objective is it.
    return result[1], objective is not None, float(objective[1]) if objective and result[1] == "Optimal" else None


def _outcome(status: str, cuts: Cuts | None, bound: float | None) -> Outcome:
    if "infeasible" in status.lower():
        return Outcome("infeasible", None, None)
    if status == "Optimal" and cuts is not None:
        return Outcome("optimal", cuts, bound)
    if "time limit" in status.lower():
        return Outcome("time limit", cuts, bound)
    raise ValueError(f"the solver ended with {status!r}")


def _cuts(variables: Variables) -> Cuts:
    return tuple(sum(round(x.varValue) for x in xs) for xs in variables)
