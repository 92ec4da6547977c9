"""From sizes, counts, figures and budgets to a problem of whole numbers, and from its answer back to a placement."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from placement.cost import ModelSizes
from placement.frequencies import Frequencies
from placement.latency import Costs
from placement.plan import Budgets, LayerPlan, Mode, Objective, Placement, Segment, Unit
from placement.problem import Choice, DenseParts, Numbers, PlacementProblem
from placement.reads import row_reads
from profiler.hardware import Hardware

GROUP_ROWS = 64
UNITS: tuple[Unit, Unit] = ("cpu", "gpu")  # in the order of a problem's tables
KEPT_IMPACT = 1e-3  # of a row in RAM rather than on flash, so that it only decides between equals on the GPU


def formulate(
    sizes: ModelSizes,
    frequencies: Frequencies,
    hardware: Hardware,
    budgets: Budgets,
    mode: Mode,
    objective: Objective,
    *,
    flash: bool = False,
) -> PlacementProblem:
    """The problem of placing a model. flash: rows may be left there; needs figures of the drive.

    latency: seconds of a decode step, as `token_seconds` counts them. impact: what is not on the GPU, a row counting
    how often it is active and a dense part as many rows as its bytes that are read would hold; least rows as in the
    paper.

    Raises:
        UserError: frequencies that are not of this model, or no figures of a drive.
    """
    predicts = mode == "predicted"
    reads = row_reads(sizes, frequencies, mode, budgets.batch)
    costs = Costs(sizes, hardware, reads, budgets.batch, budgets.context, predicts)
    groups = group_sizes(sizes.n_rows)
    kv = sizes.kv_bytes(budgets.context, budgets.batch)
    dense = [a + kv + (p if predicts else 0) for a, p in zip(sizes.attention_bytes, sizes.predictor_bytes, strict=True)]
    ends = [sizes.embeddings_bytes + sizes.positions_bytes, sizes.head_bytes + sizes.final_norm_bytes]
    layers = range(sizes.n_layers)
    if objective == "latency":
        attention_costs = np.array([[costs.attention(layer, unit) for unit in UNITS] for layer in layers])
        ends_costs = np.array([[0.0, 0.0], [costs.head(unit) for unit in UNITS]])
        gpu, cpu = (in_groups(costs.rows[unit], groups) for unit in ("gpu", "cpu"))
        on_flash = in_groups(costs.flash(), groups) if flash else None
        least: int | None = 0
    else:
        rows = np.array([costs.attention_read(layer) for layer in layers]) / sizes.whole_row_bytes
        attention_costs = np.stack((rows, np.zeros(sizes.n_layers)), axis=1)
        ends_costs = np.array([[0.0, 0.0], [sizes.head_read_bytes / sizes.whole_row_bytes, 0.0]])
        cpu = in_groups(frequencies.active, groups)
        gpu, on_flash = np.zeros_like(cpu), cpu * KEPT_IMPACT if flash else None
        least = least_rows(sizes, hardware)
    timed = objective == "latency"
    return PlacementProblem(
        objective=objective,
        groups=groups,
        row_bytes=sizes.whole_row_bytes,
        gpu=gpu,
        cpu=cpu,
        flash=on_flash,
        gpu_start=costs.overhead("gpu") * timed,
        cpu_start=costs.overhead("cpu") * timed,
        gpu_share=hardware.gpu_share if timed else 1.0,
        cpu_share=hardware.cpu_share if timed else 1.0,
        hand_over=hardware.hand_over * timed,
        least=(least,) * sizes.n_layers,
        attention=DenseParts(np.array(dense, dtype=np.int64), attention_costs),
        ends=DenseParts(np.array(ends, dtype=np.int64), ends_costs),
        tied=sizes.tied,
        vram=max(budgets.vram - sizes.gpu_overhead, 0),
        ram=None if budgets.ram is None else max(budgets.ram - sizes.buffer_bytes, 0),
    )


def to_placement(problem: PlacementProblem, choice: Choice, mode: Mode, budgets: Budgets) -> Placement:
    """The placement that a choice stands for, in mode `mode`."""
    rows = problem.ends_of_groups
    layers = (
        split_layer(int(rows[-1]), int(rows[cut]), UNITS[unit], int(rows[kept]))
        for cut, kept, unit in zip(choice.cuts, choice.kept, choice.attention, strict=True)
    )
    return Placement(
        mode=mode,
        sparse=True,
        budgets=budgets,
        n_rows=int(rows[-1]),
        embeddings=UNITS[choice.embeddings],
        head=UNITS[choice.head],
        layers=tuple(layers),
    )


def split_layer(n_rows: int, cut: int, attention: Unit, kept: int | None = None) -> LayerPlan:
    """A layer whose rows before `cut` are the GPU's; those before `kept`, by default all, in RAM and the rest on flash
    are the CPU's.
    """
    kept = n_rows if kept is None else kept
    segments = []
    if cut:
        segments.append(Segment(0, cut, "gpu", "gpu"))
    if cut < kept:
        segments.append(Segment(cut, kept, "ram", "cpu"))
    if kept < n_rows:
        segments.append(Segment(kept, n_rows, "flash", "cpu"))
    return LayerPlan(attention, tuple(segments))


def least_rows(sizes: ModelSizes, hardware: Hardware) -> int | None:
    """C_l of PowerInfer (§6.3.1): the fewest rows of a layer whose time saved on the GPU repays a synchronisation.

    C_l · T^GPU + T_sync ≤ C_l · T^CPU with T^j = bytes of a row / bandwidth_j; None where no number of rows does.
    """
    cpu, gpu = (unit.speed(sizes.weight_format).rows for unit in (hardware.cpu, hardware.gpu))
    saved = sizes.whole_row_bytes / cpu - sizes.whole_row_bytes / gpu
    if saved <= 0 or hardware.sync / saved > sizes.n_rows:
        return None
    return math.ceil(hardware.sync / saved)


def group_sizes(n_rows: int) -> npt.NDArray[np.int64]:
    """Rows of each group of a layer, all `GROUP_ROWS` but perhaps the last."""
    return np.diff(np.append(np.arange(0, n_rows, GROUP_ROWS), n_rows)).astype(np.int64)


def in_groups(rows: Numbers, groups: npt.NDArray[np.int64]) -> Numbers:
    """Sums `[layers, groups]` of what is given for rows, `[layers, rows]`."""
    return np.add.reduceat(rows, np.cumsum(groups) - groups, axis=1)
