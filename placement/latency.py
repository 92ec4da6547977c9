"""Time: what a placement's decode step should take, from the bytes each unit reads and the machine's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from placement.cost import ModelSizes, uses_predictors
from placement.frequencies import Frequencies
from placement.plan import Expected, LayerPlan, Placement, Segment, Unit
from placement.reads import Numbers, RowReads, row_reads
from profiler.formats import bits_per_weight
from profiler.hardware import Hardware
from profiler.speeds import ComputeUnit

# Operators that a decoder calls for each part, every one of which costs a unit its overhead: two norms, four
# projections, rope and attention itself; the predictor's two products; the rows; the last norm and the head.
ATTENTION_OPERATORS = 8
PREDICTOR_OPERATORS = 2
ROWS_OPERATORS = 1
HEAD_OPERATORS = 2
FAULT_DEPTH = 1  # rows on flash come by page faults, one after the other
RELOAD_BLOCK = 1 << 20  # baselines read whole layers
RELOAD_DEPTH = 32


@dataclass
class _Work:
    """What one unit does in a step."""

    seconds: float = 0.0
    read: float = 0.0


@dataclass
class Costs:
    """Seconds of every part of a model on each unit of a machine, alone.

    batch and context: tokens of a step, and keys that each of them attends to.
    """

    sizes: ModelSizes
    hardware: Hardware
    reads: RowReads
    batch: int
    context: int
    predicts: bool
    rows: dict[Unit, Numbers] = field(init=False)  # [layers, rows]

    def __post_init__(self) -> None:
        self.rows = {"gpu": self.reads.seconds(self.hardware.gpu), "cpu": self.reads.seconds(self.hardware.cpu)}

    def machine(self, unit: Unit) -> ComputeUnit:
        """The figures of a unit."""
        return self.hardware.gpu if unit == "gpu" else self.hardware.cpu

    def overhead(self, unit: Unit, operators: int = ROWS_OPERATORS) -> float:
        """Seconds that starting so many operators costs."""
        return operators * self.machine(unit).overhead

    def attention_read(self, layer: int) -> int:
        """Bytes that a layer's attention reads: its weights, the predictor's, and the keys and values of all tokens."""
        return self.dense_read(layer) + self.kv_read

    def dense_read(self, layer: int) -> int:
        """Bytes of a layer's weights that are read for every token."""
        return self.sizes.attention_bytes[layer] + (self.sizes.predictor_bytes[layer] if self.predicts else 0)

    @property
    def kv_read(self) -> int:
        """Bytes of keys and values that one layer reads."""
        return self.sizes.kv_bytes_per_token * self.context * self.batch

    def attention(self, layer: int, unit: Unit) -> float:
        """Seconds of a layer's attention and predictor."""
        predictor = PREDICTOR_OPERATORS if self.predicts and self.sizes.predictor_bytes[layer] else 0
        weights = self.matrix(self.dense_read(layer), unit)
        keys = self.kv_read / self.machine(unit).bandwidth
        return weights + keys + self.overhead(unit, ATTENTION_OPERATORS + predictor)

    def head(self, unit: Unit) -> float:
        """Seconds of the last norm and the head."""
        return self.matrix(self.sizes.head_read_bytes, unit) + self.overhead(unit, HEAD_OPERATORS)

    def matrix(self, read: float, unit: Unit) -> float:
        """Seconds of products with `read` bytes of weights, one row after the other."""
        machine = self.machine(unit)
        seconds = read / machine.speed(self.sizes.weight_format).dense
        flops = machine.products(self.sizes.weight_format)
        if flops is None:
            return seconds
        operations = 2 * self.batch * read * 8 / bits_per_weight(self.sizes.weight_format)
        return max(seconds, operations / flops)

    def flash(self) -> Numbers:
        """Seconds `[layers, rows]` that rows on flash take more than rows in memory: each fault brings one row."""
        return self.reads.bytes / self.hardware.flash_bandwidth(self.sizes.row_bytes, FAULT_DEPTH)


def token_seconds(
    sizes: ModelSizes, frequencies: Frequencies | None, hardware: Hardware, placement: Placement
) -> Expected:
    """Predicted seconds of one decode step at the full context of the budgets, and what they consist of.

    A part takes its bytes over the speed of its unit, and the overheads of its operators. A layer is its attention
    (with the KV pages and the predictor) and then both units' rows, begun together (`Hardware.joined_seconds`), with
    one hand-over if any row is computed on another unit than the attention. Where consecutive parts (embeddings,
    attentions, head) differ in unit, half a hand-over is added: it goes one way. Streamed rows cross the link first,
    and what is on flash is read from there: row by row where rows are skipped, a layer at a time in a baseline.
    frequencies may be None in mode dense alone.

    Raises:
        UserError: rows on flash without figures for it, or frequencies that are not of this model.
    """
    budgets = placement.budgets
    reads = row_reads(sizes, frequencies, placement.mode, budgets.batch)
    costs = Costs(sizes, hardware, reads, budgets.batch, budgets.context, uses_predictors(placement))
    work: dict[Unit, _Work] = {"gpu": _Work(), "cpu": _Work()}

    def spend(unit: Unit, read: float, seconds: float) -> float:
        work[unit].seconds += seconds
        work[unit].read += read
        return seconds

    attention = ffn = transfer = flash = 0.0
    for number, layer in enumerate(placement.layers):
        attention += spend(layer.attention, costs.attention_read(number), costs.attention(number, layer.attention))
        computed: dict[Unit, float] = {"gpu": 0.0, "cpu": 0.0}
        for unit in _units(layer):
            segments = [s for s in layer.segments if s.computed_on == unit]
            read = sum(float(reads.bytes[number, s.start : s.stop].sum()) for s in segments)
            arriving = sum(arrival_seconds(costs, placement, number, s) for s in segments)
            computed[unit] = spend(unit, read, rows_seconds(costs, number, segments) + arriving)
        flash += sum(float(reads.bytes[number, s.start : s.stop].sum()) for s in layer.segments if s.on_flash)
        ffn += hardware.joined_seconds(computed["gpu"], computed["cpu"])
        transfer += hardware.hand_over * layer.crosses
    head = spend(placement.head, sizes.head_read_bytes, costs.head(placement.head))
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
        flash_bytes=flash,
    )


def rows_seconds(costs: Costs, layer: int, segments: Sequence[Segment]) -> float:
    """Seconds of segments of a layer that one unit computes, which has them; 0 where there are none."""
    if not segments:
        return 0.0
    unit = segments[0].computed_on
    return costs.overhead(unit) + sum(float(costs.rows[unit][layer, s.start : s.stop].sum()) for s in segments)


def arrival_seconds(costs: Costs, placement: Placement, layer: int, segment: Segment) -> float:
    """Seconds until a segment's rows are where they are computed: from the drive, and over the link."""
    rows, hardware, seconds = slice(segment.start, segment.stop), costs.hardware, 0.0
    size = segment.rows * costs.sizes.whole_row_bytes
    if segment.on_flash and placement.sparse:
        seconds += float(costs.flash()[layer, rows].sum())
    elif segment.on_flash:
        seconds += size / hardware.flash_bandwidth(RELOAD_BLOCK, RELOAD_DEPTH)
    if segment.streamed:
        seconds += size / hardware.link_bandwidth
    return seconds


def _units(layer: LayerPlan) -> Iterator[Unit]:
    for unit in ("gpu", "cpu"):
        if any(segment.computed_on == unit for segment in layer.segments):
            yield unit
