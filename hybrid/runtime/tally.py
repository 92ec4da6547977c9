"""Which neurons fired: a tally of the rows that were added up, by layer, bucket of rows and unit, and what it says.

A bucket is a contiguous stretch of a layer's rows, which lie hottest first. Recorded programs and device operators add
to it where they know the active rows anyway; eager operators show which fired. Each unit has counts of its own, so that
two that compute a layer at once never meet. What other threads read is published between steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.ops.bank import Buckets, RowBank
from hybrid.ops.limits import MOST_BUCKETS
from hybrid.runtime.unit import Unit
from placement.plan import LayerPlan, Residence

RESIDENCES: tuple[Residence, ...] = ("gpu", "ram", "flash")
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Firing:
    """How often rows fired since the engine was opened.

    A row fires for a token when its down vector is added for it: in mode dense that is every row; in the others it is
    named, where there are predictors, and its activation is not skipped.

    neurons: rows of a layer. bucket_rows: rows of a bucket; the last one of a layer may have fewer. tokens: int64
    `[layers]`, that passed through each layer. counts: for each unit that computes rows int64 `[layers, buckets]`,
    pairs of token and row. resident: int8 `[layers, buckets]`, where most rows of a bucket lie, as an index into
    `RESIDENCES`.
    """

    neurons: int
    bucket_rows: int
    tokens: Counts
    counts: Mapping[str, Counts]
    resident: NDArray[np.int8]

    @property
    def bucket_sizes(self) -> Counts:
        """int64 `[buckets]`: rows of each."""
        return _sizes(self.neurons, self.bucket_rows)

    def shares(self, earlier: Firing | None = None) -> NDArray[np.float64]:
        """float64 `[layers, buckets]`, 0 to 1: of a bucket's rows, how many fired for a token on average.

        Of the tokens since `earlier`, a firing of the same engine; 0 in layers that no token passed since.
        """
        pairs, tokens = self.pairs, self.tokens
        if earlier is not None:
            pairs, tokens = pairs - earlier.pairs, tokens - earlier.tokens
        shares: NDArray[np.float64] = pairs / (np.maximum(tokens, 1)[:, None] * self.bucket_sizes)
        return shares

    @property
    def pairs(self) -> Counts:
        """int64 `[layers, buckets]`: of all units."""
        pairs: Counts = np.stack(list(self.counts.values())).sum(0)
        return pairs


class Tally:
    """Counts of one engine, which its thread and its units' add to.

    layers: of the model, the units that may compute rows, with their banks, which are told where to count. plans: where
    their rows lie.
    """

    def __init__(
        self,
        neurons: int,
        layers: Sequence[Sequence[tuple[Unit, Sequence[RowBank]]]],
        plans: Sequence[LayerPlan],
    ) -> None:
        self.bucket_rows = rows_of_bucket(neurons)
        self.tokens = np.zeros(len(layers), np.int64)
        self._neurons = neurons
        self._counts: dict[str, torch.Tensor] = {}
        for index, units in enumerate(layers):
            for unit, banks in units:
                if unit.name not in self._counts:
                    shape = (len(layers), -(-neurons // self.bucket_rows))
                    self._counts[unit.name] = torch.zeros(shape, dtype=torch.int64, device=unit.device)
                for bank in banks:
                    bank.buckets = Buckets(self._counts[unit.name][index], self.bucket_rows)
        self._resident = np.stack([_resident(plan, neurons, self.bucket_rows) for plan in plans])
        self._resident.flags.writeable = False
        self.publish()

    def add(self, unit: str, layer: int, rows: slice | torch.Tensor, fired: torch.Tensor) -> None:
        """Count what an eager operator computed: int64 `fired [rows]`, of the rows `rows` of a layer."""
        counts = self._counts[unit][layer]
        places = torch.arange(rows.start, rows.stop, device=fired.device) if isinstance(rows, slice) else rows
        counts.index_add_(0, (places // self.bucket_rows).to(counts.device), fired.to(counts.device))

    def publish(self) -> None:
        """Between steps, in the engine's thread: what was counted so far is what others read from now on."""
        counts = {unit: _frozen(table.cpu().numpy().copy()) for unit, table in self._counts.items()}
        self._published = Firing(self._neurons, self.bucket_rows, _frozen(self.tokens.copy()), counts, self._resident)

    def firing(self) -> Firing:
        """What was published last; from any thread."""
        return self._published


def rows_of_bucket(neurons: int) -> int:
    """A power of two, with which a layer has at most `MOST_BUCKETS`."""
    return 1 << max(0, (-(-neurons // MOST_BUCKETS) - 1).bit_length())


def _sizes(neurons: int, bucket_rows: int) -> Counts:
    starts = np.arange(0, neurons, bucket_rows)
    return np.minimum(bucket_rows, neurons - starts)


def _resident(plan: LayerPlan, neurons: int, bucket_rows: int) -> NDArray[np.int8]:
    """int8 `[buckets]`: where most rows of each lie, the first of equals."""
    rows = np.zeros((len(RESIDENCES), neurons), np.int64)
    for segment in plan.segments:
        rows[RESIDENCES.index(segment.resident), segment.start : segment.stop] = 1
    by_bucket: Counts = np.add.reduceat(rows, np.arange(0, neurons, bucket_rows), axis=1)
    most: Counts = np.argmax(by_bucket, axis=0)
    return most.astype(np.int8)


def _frozen(counts: Counts) -> Counts:
    counts.flags.writeable = False
    return counts
