"""How many attentions are on the GPU and what they take there: what bounds and branching tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.problem import GPU, Numbers, PlacementProblem

MOST_STATES = 50_000  # above, bounds take longer to find than they are worth
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class States:
    """States of a walk over the layers, from 0. shifts: by how many states each attention on the GPU moves the walk on.

    attentions, bytes: `[states]`, how many attentions are on the GPU and what they take there; bytes None where the
    states only say how many.
    """

    shifts: tuple[int, ...]
    attentions: Counts
    bytes: Counts | None


def attention_states(problem: PlacementProblem) -> States:
    """The states of a problem's attentions.

    Predictors make them unequal. What some of them take is so many times the smallest, and so many times the largest
    unit that all differences are multiples of; where that makes too many states, only the number counts.
    """
    sizes, count = problem.attention.bytes, problem.n_layers + 1
    smallest = int(sizes.min())
    unit = max(int(np.gcd.reduce(sizes - smallest)), 1)
    more = (sizes - smallest) // unit
    width = int(more.sum()) + 1
    if count * width > MOST_STATES:
        return States((1,) * problem.n_layers, np.arange(count), None)
    attentions, units = np.divmod(np.arange(count * width), width)
    return States(tuple((width + more).tolist()), attentions, attentions * smallest + units * unit)


def limits(problem: PlacementProblem, on_gpu: Counts | None = None) -> Numbers:
    """Both budgets `[..., 2]`, that of RAM perhaps infinite, less what no whole group can fill.

    on_gpu: bytes `[...]` of the attentions there; None where they are not known, or all are held in place. What groups
    can fill is known only where embeddings and head are held in place, too.
    """
    budgets = np.array([problem.vram, math.inf if problem.ram is None else problem.ram], dtype=np.float64)
    ends_held, all_held = (not np.isfinite(x.costs).all(axis=1).any() for x in (problem.ends, problem.attention))
    if on_gpu is None and all_held:
        on_gpu = problem.attention.bytes[np.isfinite(problem.attention.costs[:, GPU])].sum()
    if on_gpu is None:
        return budgets
    if not ends_held:
        return np.broadcast_to(budgets, (*np.shape(on_gpu), 2))
    dense = on_gpu + int(problem.ends.bytes[np.isfinite(problem.ends.costs[:, GPU])].sum())
    everywhere = int(problem.attention.bytes.sum() + problem.ends.bytes.sum())
    step = int(np.gcd.reduce(problem.groups)) * problem.row_bytes
    idle = [(problem.vram - dense) % step, np.zeros_like(dense)]
    if problem.ram is not None:
        idle[1] = (problem.ram - everywhere + dense) % step
    return np.asarray(budgets - np.stack(idle, axis=-1))
