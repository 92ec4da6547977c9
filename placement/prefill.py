"""Steps of many tokens, as prompts take: whether rows in host memory are computed there, or brought to the GPU.

computed: as for one token, each unit takes its own rows at the same time, the CPU `CPU_TOKENS` tokens at once.
streamed: the GPU takes them all; those of host memory pass through two buffers, one of which is filled while the other
is computed. The time of one grows with the tokens, that of the other hardly does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.cost import ModelSizes, gpu_computes, uses_predictors
from placement.frequencies import Frequencies
from placement.latency import Costs, arrival_seconds, rows_seconds
from placement.plan import Expected, LayerPlan, Placement
from placement.reads import row_reads
from placement.simulate import at, step_seconds
from profiler.formats import bits_per_weight
from profiler.hardware import Hardware

CPU_TOKENS = 16  # that the CPU's operators take at once; a step of so many is not streamed
STREAM_ROWS = 1024  # of one buffer
STREAM_BUFFERS = 2
PICKED = 0.75  # up to this share of rows that some token names, those are picked out; above it all are brought
CROSSINGS = 3  # of host memory by what is brought: read, written where the GPU can fetch it, fetched


@dataclass(frozen=True)
class Ways:
    """Seconds of one layer's FFN for all tokens of a step; streamed is None where there is nothing to be brought."""

    computed: float
    streamed: float | None

    @property
    def streams(self) -> bool:
        """Whether streaming is the faster way."""
        return self.streamed is not None and self.streamed < self.computed

    @property
    def seconds(self) -> float:
        """Of the faster way."""
        return self.computed if self.streamed is None else min(self.computed, self.streamed)


class PrefillCosts:
    """The ways of every layer of a placement, for steps of any number of tokens.

    frequencies may be None in mode dense alone.

    Raises:
        UserError: frequencies that are not of this model; when asked for, rows on flash without figures for it.
    """

    def __init__(
        self, sizes: ModelSizes, frequencies: Frequencies | None, hardware: Hardware, placement: Placement
    ) -> None:
        self.sizes, self.frequencies, self.hardware, self.placement = sizes, frequencies, hardware, placement
        self._few = self._costs(CPU_TOKENS)
        self._ways: dict[int, tuple[Ways, ...]] = {}

    def ways(self, tokens: int) -> tuple[Ways, ...]:
        """Of each layer, for a step of so many tokens, rounded up to what the CPU takes at once."""
        pieces = math.ceil(tokens / CPU_TOKENS)
        if pieces not in self._ways:
            many = self._costs(pieces * CPU_TOKENS) if pieces > 1 else self._few
            layers = enumerate(self.placement.layers)
            self._ways[pieces] = tuple(self._of(many, number, layer, pieces) for number, layer in layers)
        return self._ways[pieces]

    def crossover(self, layer: int, most: int) -> int | None:
        """The fewest tokens, up to `most`, from which on a layer's rows are streamed; None where they never are."""
        found = None
        for pieces in range(math.ceil(most / CPU_TOKENS), 1, -1):
            if not self.ways(pieces * CPU_TOKENS)[layer].streams:
                break
            found = (pieces - 1) * CPU_TOKENS + 1
        return found

    def _costs(self, tokens: int) -> Costs:
        placement = at(self.placement, tokens, self.placement.budgets.context)
        reads = row_reads(self.sizes, self.frequencies, placement.mode, tokens)
        if tokens > CPU_TOKENS:  # masked products: what is read is multiplied with every token
            operations = 2 * 8 / bits_per_weight(self.sizes.weight_format) * tokens
            reads = replace(reads, products=reads.bytes * operations)
        return Costs(self.sizes, self.hardware, reads, tokens, placement.budgets.context, uses_predictors(placement))

    def _of(self, many: Costs, number: int, layer: LayerPlan, pieces: int) -> Ways:
        gpu = [s for s in layer.segments if s.computed_on == "gpu"]
        cpu = [s for s in layer.segments if s.computed_on == "cpu"]
        resident = rows_seconds(many, number, gpu)
        resident += sum(arrival_seconds(many, self.placement, number, s) for s in gpu)
        arriving = sum(arrival_seconds(many, self.placement, number, s) for s in cpu)
        beside = pieces * rows_seconds(self._few, number, cpu) + arriving
        computed = self.hardware.joined_seconds(resident, beside) + self.hardware.hand_over * layer.crosses
        if pieces == 1 or not cpu or not gpu_computes(self.placement):
            return Ways(computed, None)
        brought = [replace(s, resident="ram", computed_on="gpu") for s in cpu]
        places = np.concatenate([np.arange(s.start, s.stop) for s in cpu])
        rows = _brought(many, number, places)
        if not rows:
            return Ways(computed, resident)
        speed = min(self.hardware.link_bandwidth, self.hardware.cpu.bandwidth / CROSSINGS)
        copying = rows * self.sizes.whole_row_bytes / speed + arriving
        chunks = math.ceil(rows / STREAM_ROWS)
        products = rows_seconds(many, number, brought) + many.overhead("gpu", chunks - 1)
        # The first chunk comes while resident rows are computed, and the last is computed when nothing comes any more.
        streamed = max(copying + products / chunks, max(resident, copying / chunks) + products)
        return Ways(computed, streamed)


def prefill_step(
    sizes: ModelSizes,
    frequencies: Frequencies | None,
    hardware: Hardware,
    placement: Placement,
    *,
    batch: int,
    context: int,
) -> Expected:
    """As `step_seconds`, for the `batch` tokens of a piece of a prompt, each layer's rows in the faster way.

    Raises:
        UserError: as there.
    """
    expected = step_seconds(sizes, frequencies, hardware, placement, batch=batch, context=context)
    if batch <= CPU_TOKENS:
        return expected
    ways = PrefillCosts(sizes, frequencies, hardware, placement).ways(batch)
    hand_overs = hardware.hand_over * sum(layer.crosses for layer in placement.layers)  # are in the ways
    ffn, transfer = sum(way.seconds for way in ways), max(0.0, expected.transfer_seconds - hand_overs)
    total = expected.attention_seconds + ffn + expected.head_seconds + transfer
    return replace(expected, token_seconds=total, ffn_seconds=ffn, transfer_seconds=transfer)


def _brought(many: Costs, layer: int, places: npt.NDArray[np.intp]) -> float:
    """Rows of those at `places` that a step brings to the GPU: all, or where predictors name few of them, those."""
    if many.reads.passed[layer, places].any():
        return float(len(places))
    named = float(many.reads.density[layer, places].sum())
    return named if named <= PICKED * len(places) else float(len(places))
