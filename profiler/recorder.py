"""`Recorder`: counts, for every neuron, the tokens and the windows of tokens in which it was active or named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from profiler.artifacts import UserError
from profiler.profile import Counts, Profile

WINDOWS = (4, 16)  # each divides the next, so the wider windows are made of the narrower ones


class Recorder:
    """A tap that makes a `Profile`.

    Windows run on through the text, across calls and documents (the tokens of a batch are not of one document either).
    At the end of the text the last window may be short; it counts with the tokens it has. So every token is in exactly
    one window of each width, and `active ≤ union4 ≤ union16 ≤ tokens` holds for every neuron.

    Args:
        layers: number of layers.
        neurons: neurons of one layer.
        row_to_id: per layer the neuron id of every row; None where rows stand in the order of ids.

    """

    def __init__(
        self, layers: int, neurons: int, row_to_id: Sequence[np.ndarray[tuple[int], np.dtype[np.integer]]] | None = None
    ) -> None:
        self._orders = [np.arange(neurons)] * layers if row_to_id is None else [np.asarray(ids) for ids in row_to_id]
        assert len(self._orders) == layers, "one row order per layer"
        assert all(np.array_equal(np.sort(ids), np.arange(neurons)) for ids in self._orders), "a permutation of the ids"
        self._layers = [_LayerCounts(neurons) for _ in range(layers)]

    @property
    def tokens(self) -> int:
        """Tokens that every layer has seen."""
        return min(counts.tokens for counts in self._layers)

    def document(self) -> None:
        """Nothing: windows run on from one document into the next."""

    def ffn(self, layer: int, hidden: torch.Tensor, activation: torch.Tensor, named: torch.Tensor | None) -> None:
        """Count the next tokens of a layer; see `profiler.tap.Tap`."""
        self._layers[layer].add(activation != 0, named)

    def to_profile(
        self,
        source_digest: str,
        corpus_digest: str,
        thresholds: Sequence[float] = (),
        has_predictors: bool = False,
        documents: Iterable[int] = (),
    ) -> Profile:
        """The counts so far, by neuron id. Recording may go on afterwards. documents: their digests, of 64 bits.

        Raises:
            UserError: no token has been recorded.
        """
        if not self.tokens:
            raise UserError("the text to profile is empty: give a file with text in it")
        assert all(counts.tokens == self.tokens for counts in self._layers), "every layer sees every token"
        by_row = {"active": [c.active for c in self._layers], "named": [c.named for c in self._layers]}
        unions = [counts.unions() for counts in self._layers]
        by_row |= {f"union{width}": [u[i] for u in unions] for i, width in enumerate(WINDOWS)}
        by_id = {name: self._by_id(rows) for name, rows in by_row.items()}
        return Profile(
            source_digest,
            corpus_digest,
            self.tokens,
            **by_id,
            thresholds=tuple(thresholds),
            has_predictors=has_predictors,
            documents=np.unique(np.array(list(documents), dtype=np.uint64)),
        )

    def _by_id(self, rows: list[torch.Tensor]) -> Counts:
        counts = np.zeros((len(rows), rows[0].numel()), dtype=np.int64)
        for layer, order in enumerate(self._orders):
            counts[layer, order] = rows[layer].numpy()
        return counts


class _LayerCounts:
    """Counts of one layer in row order, int64 `[rows]` on the CPU, and the tokens of the window that is still open."""

    def __init__(self, rows: int) -> None:
        self.tokens = 0
        self.active = torch.zeros(rows, dtype=torch.int64)
        self.named = torch.zeros(rows, dtype=torch.int64)
        self.closed = [torch.zeros(rows, dtype=torch.int64) for _ in WINDOWS]
        self.open = torch.zeros((0, rows), dtype=torch.bool)

    def add(self, active: torch.Tensor, named: torch.Tensor | None) -> None:
        self.tokens += len(active)
        self.active += _tokens_per_row(active)
        if named is not None:
            self.named += _tokens_per_row(named)
        pending = torch.cat([self.open.to(active.device), active])
        whole = len(pending) // WINDOWS[-1] * WINDOWS[-1]
        for i, hits in enumerate(_union_counts(pending[:whole])):
            self.closed[i] += hits
        self.open = pending[whole:].clone()

    def unions(self) -> list[torch.Tensor]:
        """Union counts with the open window closed as it stands."""
        return [closed + hits for closed, hits in zip(self.closed, _union_counts(self.open), strict=True)]


def _tokens_per_row(bits: torch.Tensor) -> torch.Tensor:
    """int64 `[rows]`: set bits of bool `[tokens, rows]`. fp32 sums are many times faster, exact below 2^24 tokens."""
    return bits.float().sum(0).long().cpu()


def _union_counts(active: torch.Tensor) -> list[torch.Tensor]:
    """Per width of `WINDOWS`: tokens that lie in a window in which the row is active, int64 `[rows]`."""
    counts = []
    for width in WINDOWS:
        whole = len(active) // width * width
        # `any` over a dimension is far slower than `amax`.
        windows = active[:whole].view(whole // width, width, active.shape[1]).amax(1)
        counts.append(_tokens_per_row(windows) * width + active[whole:].any(0).cpu() * (len(active) - whole))
    return counts
