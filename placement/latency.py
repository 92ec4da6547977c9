"""Time: what a placement's decode step should take, from the bytes each unit reads and the machine's figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.cost import ModelSizes, uses_predictors
from placement.frequencies import Frequencies
from placement.plan import Expected, LayerPlan, Mode, Placement, Segment, Unit
from profiler.artifacts import UserError
from profiler.hardware import Hardware


@dataclass
class _Work:
    """What one unit does in a step."""

    seconds: float = 0.0
    read: float = 0.0


def token_seconds(
    sizes: ModelSizes, frequencies: Frequencies | None, hardware: Hardware, placement: Placement
) -> Expected:
    """Predicted seconds of one decode step at the full context of the budgets, and what they consist of.

    A part takes its bytes over the bandwidth of its unit, and one overhead. A layer is its attention (with the KV pages
    and the predictor) and then the slower of the two units' rows, with one hand-over if any row is computed on another
    unit than the attention. Where consecutive parts (embeddings, attentions, head) differ in unit, half a hand-over is
    added: it goes one way. Streamed rows cross the link first. frequencies may be None in mode dense alone.

    Raises:
        UserError: rows on flash, for which there are no figures, or frequencies that are not of this model.
    """
    needed = _needed(sizes, frequencies, placement)
    work: dict[Unit, _Work] = {"gpu": _Work(), "cpu": _Work()}
    bandwidth = {"gpu": hardware.gpu.bandwidth, "cpu": hardware.cpu.bandwidth}
    overhead = {"gpu": hardware.gpu.overhead, "cpu": hardware.cpu.overhead}

    def spend(unit: Unit, read: float, crossing: float = 0.0) -> float:
        seconds = read / bandwidth[unit] + crossing / hardware.link_bandwidth + overhead[unit]
        work[unit].seconds += seconds
        work[unit].read += read
        return seconds

    kv_read = sizes.kv_bytes_per_token * placement.budgets.context * placement.budgets.batch
    attention = ffn = transfer = 0.0
    for number, layer in enumerate(placement.layers):
        predictor = sizes.predictor_bytes[number] if uses_predictors(placement) else 0
        attention += spend(layer.attention, sizes.attention_bytes[number] + predictor + kv_read)
        computed: list[float] = []
        for unit in _units(layer):
            segments = [s for s in layer.segments if s.computed_on == unit]
            read = sum(_row_bytes(sizes, placement.mode, s, needed[number]) for s in segments)
            streamed = sum(s.rows for s in segments if s.streamed) * sizes.whole_row_bytes
            computed.append(spend(unit, read, streamed))
        ffn += max(computed)
        transfer += hardware.hand_over * layer.crosses
    head = spend(placement.head, sizes.head_read_bytes)
    units = [placement.embeddings, *(layer.attention for layer in placement.layers), placement.head]
    transfer += hardware.hand_over / 2 * sum(before != after for before, after in pairwise(units))
    return Expected(
        token_seconds=attention + ffn + head + transfer,
        attention_seconds=attention,
        ffn_seconds=ffn,
        head_seconds=head,
        transfer_seconds=transfer,
        gpu_seconds=work["gpu"].seconds,
        cpu_seconds=work["cpu"].seconds,
        gpu_bytes=work["gpu"].read,
        cpu_bytes=work["cpu"].read,
    )


def _needed(sizes: ModelSizes, frequencies: Frequencies | None, placement: Placement) -> npt.NDArray[np.float64]:
    shape = (sizes.n_layers, sizes.n_rows)
    if any(segment.resident == "flash" for layer in placement.layers for segment in layer.segments):
        raise UserError("no time can be predicted for rows on flash: the machine's figures have no bandwidth for it")
    if frequencies is None:
        if placement.mode != "dense":
            raise UserError(f"mode {placement.mode} needs a profile; make one with: hybrid profile DIR --text FILE")
        return np.ones(shape)
    if frequencies.active.shape != shape:
        raise UserError(f"the profile has shape {frequencies.active.shape} and the model {shape}: profile it anew")
    return frequencies.needed(placement.mode, placement.budgets.batch)


def _units(layer: LayerPlan) -> Iterator[Unit]:
    for unit in ("gpu", "cpu"):
        if any(segment.computed_on == unit for segment in layer.segments):
            yield unit


def _row_bytes(sizes: ModelSizes, mode: Mode, segment: Segment, needed: npt.NDArray[np.float64]) -> float:
    """Expected bytes that a segment's rows read: M for what is named; with all gates M(1/3 + 2f/3), M(1/2 + f/2)."""
    rows = float(needed[segment.start : segment.stop].sum())
    if mode not in ("exact", "threshold"):
        return rows * sizes.whole_row_bytes
    first = sizes.row_bytes / (3 if sizes.gated else 2)
    return segment.rows * (first + sizes.row_extra_bytes) + rows * (sizes.row_bytes - first)
