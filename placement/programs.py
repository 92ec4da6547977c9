"""Placement as integer programs in PuLP: the paper's (impact) and the one of token time (latency), docs/placement.md.

Costs and bytes enter as shares, so that a solver's tolerances mean the same for every model and machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pulp

from placement.problem import CPU, GPU, Choice, PlacementProblem

SCALE = 1000.0  # what the dearest placement may cost in a program's objective
Variable = Any  # PuLP's classes have no types
Terms = list[tuple[Variable, float]]


@dataclass(frozen=True)
class Program:
    """A program, the variables that make a choice, and the cost that its objective counts as one.

    on_gpu, in_memory: `[layers][groups]`, 1 where a group is on the GPU, or there or in RAM (no groups where nothing is
    left on flash). attention `[layers]`, embeddings, head: 1 on the GPU; a tied head is the embeddings' variable.
    """

    model: pulp.LpProblem
    on_gpu: list[list[Variable]]
    in_memory: list[list[Variable]]
    attention: list[Variable]
    embeddings: Variable
    head: Variable
    unit: float

    def choice(self, problem: PlacementProblem) -> Choice:
        """What the variables say."""
        cuts = tuple(sum(round(x.varValue) for x in xs) for xs in self.on_gpu)
        kept = tuple(sum(round(x.varValue) for x in xs) for xs in self.in_memory)
        if problem.flash is None:
            kept = (problem.n_groups,) * problem.n_layers
        units = tuple(round(a.varValue) for a in self.attention)
        return Choice(cuts, kept, units, round(self.embeddings.varValue), round(self.head.varValue))

    def values(self, choice: Choice) -> Terms:
        """Each of these variables with its value in a choice: a solver's start."""
        found: Terms = []
        for variables, ends in ((self.on_gpu, choice.cuts), (self.in_memory, choice.kept)):
            for row, end in zip(variables, ends, strict=True):
                found += [(x, float(group < end)) for group, x in enumerate(row)]
        found += [(a, float(unit)) for a, unit in zip(self.attention, choice.attention, strict=True)]
        found.append((self.embeddings, float(choice.embeddings)))
        return found if self.head is self.embeddings else [*found, (self.head, float(choice.head))]


def build_program(problem: PlacementProblem) -> Program:
    """The problem in PuLP.

    x_{l,g} ≥ x_{l,g+1} (prefixes), r_{l,g} ≥ x_{l,g} likewise; bytes on the GPU ≤ vram, bytes in RAM ≤ ram. Where a
    layer has a least number of rows, C y ≤ Σ n x ≤ N y with prefixes and whole groups is: the last of the groups that
    hold C rows is on the GPU if the first is (y = x_{l,1}). Latency: a layer's time t is at least both ends of
    `Hardware.joined_seconds`, z says that groups are elsewhere than their attention, d that consecutive dense parts
    differ in unit.
    """
    layers, groups = range(problem.n_layers), range(problem.n_groups)
    model = pulp.LpProblem("placement", pulp.LpMinimize)
    unit = problem.dearest / SCALE

    def binary(name: str) -> Variable:
        return model.add_variable(name, cat=pulp.LpBinary)

    on_gpu = [[binary(f"x_{layer}_{group}") for group in groups] for layer in layers]
    flash = problem.flash is not None
    in_memory = [[binary(f"r_{layer}_{group}") for group in groups] if flash else [] for layer in layers]
    attention = [binary(f"a_{layer}") for layer in layers]
    embeddings = binary("e")
    head = embeddings if problem.tied else binary("h")
    program = Program(model, on_gpu, in_memory, attention, embeddings, head, unit)
    for layer in layers:
        for variables in (on_gpu[layer], in_memory[layer]):
            for hotter, colder in pairwise(variables):
                model.addConstraint(hotter >= colder)
        for x, r in zip(on_gpu[layer], in_memory[layer], strict=False):
            model.addConstraint(r >= x)
        _keep_least(problem, program, layer)
    _keep_budgets(problem, program)
    _set_objective(problem, program)
    return program


def _keep_least(problem: PlacementProblem, program: Program, layer: int) -> None:
    least, xs = problem.least[layer], program.on_gpu[layer]
    if least is None:
        program.model.addConstraint(xs[0] <= 0)
    elif (first := problem.first_cut(layer)) > 1:
        program.model.addConstraint(xs[first - 1] >= xs[0])


def _keep_budgets(problem: PlacementProblem, program: Program) -> None:
    """Bytes count in rows, whole or in part, so that coefficients are near 1."""
    dense = [(a, float(size)) for a, size in zip(program.attention, problem.attention.bytes, strict=True)]
    dense += [(program.embeddings, float(problem.ends.bytes[0])), (program.head, float(problem.ends.bytes[1]))]
    sizes = [float(n) * problem.row_bytes for n in problem.groups]
    rows: Terms = [(x, size) for xs in program.on_gpu for x, size in zip(xs, sizes, strict=True)]
    held: Terms = [(r, size) for rs in program.in_memory for r, size in zip(rs, sizes, strict=False)]
    most = float(problem.row_bytes)
    program.model.addConstraint(_sum([*rows, *dense], 1 / most) <= problem.vram / most, "vram")
    if problem.ram is not None:
        everywhere = float(problem.attention.bytes.sum() + problem.ends.bytes.sum())
        if problem.flash is None:
            everywhere += problem.n_layers * sum(sizes)
        in_ram = _sum(held, 1 / most) - _sum([*rows, *dense], 1 / most)
        program.model.addConstraint(in_ram <= (problem.ram - everywhere) / most, "ram")


def _set_objective(problem: PlacementProblem, program: Program) -> None:
    scale = 1 / program.unit
    objective = pulp.LpAffineExpression()
    for layer in range(problem.n_layers):
        gpu, cpu = _work(problem, program, layer)
        a, xs = program.attention[layer], program.on_gpu[layer]
        if min(problem.gpu_share, problem.cpu_share) < 1:
            time = program.model.add_variable(f"t_{layer}", lowBound=0)
            program.model.addConstraint(time >= cpu + problem.gpu_share * gpu)
            program.model.addConstraint(time >= gpu + problem.cpu_share * cpu)
            objective += time
        else:
            objective += gpu + cpu
        on_cpu, on_gpu = (float(problem.attention.costs[layer, place]) * scale for place in (CPU, GPU))
        objective += on_cpu + (on_gpu - on_cpu) * a
        if problem.hand_over:
            away = program.model.add_variable(f"z_{layer}", lowBound=0)
            program.model.addConstraint(away >= a - xs[-1])
            program.model.addConstraint(away >= xs[0] - a)
            objective += problem.hand_over * scale * away
    for part, place in enumerate((program.embeddings, program.head)):
        on_cpu, on_gpu = (float(problem.ends.costs[part, at]) * scale for at in (CPU, GPU))
        objective += on_cpu + (on_gpu - on_cpu) * place
    if problem.hand_over:
        for number, (before, after) in enumerate(pairwise([program.embeddings, *program.attention, program.head])):
            change = program.model.add_variable(f"d_{number}", lowBound=0)
            program.model.addConstraint(change >= before - after)
            program.model.addConstraint(change >= after - before)
            objective += problem.hand_over / 2 * scale * change
    program.model.setObjective(objective)


def _work(problem: PlacementProblem, program: Program, layer: int) -> tuple[Any, Any]:
    """What the rows of a layer cost on the GPU and on the CPU, starts included."""
    scale, xs = 1 / program.unit, program.on_gpu[layer]
    gpu = _sum([*zip(xs, problem.gpu[layer], strict=True), (xs[0], problem.gpu_start)], scale)
    cpu = _sum([*zip(xs, -problem.cpu[layer], strict=True), (xs[-1], -problem.cpu_start)], scale)
    cpu += (float(problem.cpu[layer].sum()) + problem.cpu_start) * scale
    if problem.flash is not None:
        cpu += _sum(list(zip(program.in_memory[layer], -problem.flash[layer], strict=True)), scale)
        cpu += float(problem.flash[layer].sum()) * scale
    return gpu, cpu


def _sum(terms: Sequence[tuple[Variable, float]], scale: float) -> Any:
    """Σ scale · factor · variable; a variable may stand more than once."""
    total: dict[Variable, float] = {}
    for variable, factor in terms:
        total[variable] = total.get(variable, 0.0) + float(factor) * scale
    return pulp.LpAffineExpression(list(total.items()))
