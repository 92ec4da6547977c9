"""`Recorder`: counts, for every neuron, the tokens and the windows of tokens in which it was active or named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.artifacts import UserError
from profiler.profile import HALVES, Counts, Profile, compact

WINDOWS = (4, 16)  # each is four of the narrower ones
Bits = npt.NDArray[np.uint8]  # [tokens, rows], 0 or 1
COUNTED = 255  # tokens whose bits a byte can count


class Recorder:
    """Counts layer by layer; every layer is shown every token, in the same order.

    Windows run on through the text, across calls and documents (the tokens of a batch are not of one document either).
    At the end of the text the last window may be short; it counts with the tokens it has. So every token is in exactly
    one window of each width, and `active ≤ union4 ≤ union16 ≤ tokens` holds for every neuron.

    Args:
        layers: number of layers.
        neurons: neurons of one layer.
        domains: of the text, by name; each is counted in two halves, part `2 · domain + half`.
        row_to_id: per layer the neuron id of every row; None where rows stand in the order of ids.

    """

    def __init__(
        self,
        layers: int,
        neurons: int,
        domains: Sequence[str] = ("text",),
        row_to_id: Sequence[npt.NDArray[np.integer[Any]]] | None = None,
    ) -> None:
        self.domains = tuple(domains)
        self._orders = [np.arange(neurons)] * layers if row_to_id is None else [np.asarray(ids) for ids in row_to_id]
        assert len(self._orders) == layers, "one row order per layer"
        assert all(np.array_equal(np.sort(ids), np.arange(neurons)) for ids in self._orders), "a permutation of the ids"
        self._layers = [_LayerCounts(HALVES * len(self.domains), neurons) for _ in range(layers)]

    @property
    def tokens(self) -> int:
        """Tokens that every layer has seen."""
        return min(counts.tokens for counts in self._layers)

    def active(self, layer: int, bits: Bits, parts: Sequence[tuple[int, int]] = ()) -> None:
        """Count the next tokens of a layer.

        Args:
            layer: index of the layer.
            bits: which rows are active for which token.
            parts: (part, tokens) of runs of these tokens, in order; () where all are of the first part.

        """
        self._layers[layer].add(bits, parts or ((0, len(bits)),))

    def named(self, layer: int, bits: Bits) -> None:
        """Count what the layer's predictor named, `[tokens, neurons]` by neuron id, for some tokens in any order."""
        self._layers[layer].named += count_bits(bits)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that was counted so far, to go on from with `restore`."""
        layers = self._layers
        held: dict[str, npt.NDArray[Any]] = {
            "parts": compact(np.stack([c.parts for c in layers])),
            "part_tokens": compact(np.stack([c.part_tokens for c in layers])),
            "named": compact(np.stack([c.named for c in layers])),
            "closed": compact(np.stack([c.closed for c in layers])),
        }
        return held | {f"open.{i}": c.open for i, c in enumerate(layers)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of a recorder of the same sizes, domains and orders."""
        for i, counts in enumerate(self._layers):
            for name in ("parts", "part_tokens", "named", "closed"):
                getattr(counts, name)[...] = state[name][i]
            counts.open = state[f"open.{i}"].astype(np.uint8)

    def to_profile(
        self,
        source_digest: str,
        corpus_digest: str,
        thresholds: Sequence[float] = (),
        predictors_digest: str | None = None,
        documents: Iterable[int] = (),
    ) -> Profile:
        """The counts so far, by neuron id. Recording may go on afterwards. documents: their digests, of 64 bits.

        Raises:
            UserError: no token has been recorded.
        """
        if not self.tokens:
            raise UserError("the text to profile is empty: give a file with text in it")
        assert all(counts.tokens == self.tokens for counts in self._layers), "every layer sees every token"
        unions = [counts.unions() for counts in self._layers]
        parts = self._by_id([c.parts for c in self._layers])
        shape = (len(self.domains), HALVES)
        part_tokens = self._layers[0].part_tokens.reshape(shape)
        return Profile(
            source_digest,
            corpus_digest,
            self.tokens,
            active=parts.sum(0),
            named=np.stack([c.named for c in self._layers]),
            union4=self._by_id([u[0] for u in unions]),
            union16=self._by_id([u[1] for u in unions]),
            thresholds=tuple(thresholds),
            has_predictors=predictors_digest is not None,
            predictors_digest=predictors_digest,
            domains=self.domains,
            part_tokens=tuple((int(a), int(b)) for a, b in part_tokens),
            parts=compact(parts.reshape(*shape, *parts.shape[1:])),
            documents=np.unique(np.array(list(documents), dtype=np.uint64)),
        )

    def _by_id(self, rows: Sequence[Counts]) -> Counts:
        """Counts `[..., neurons]` by id of each layer's `[..., rows]`, layers before neurons."""
        counts = np.zeros((*rows[0].shape[:-1], len(rows), rows[0].shape[-1]), dtype=np.int64)
        for layer, order in enumerate(self._orders):
            counts[..., layer, order] = rows[layer]
        return counts


class _LayerCounts:
    """Counts of one layer in row order, and the tokens of the window that is still open."""

    def __init__(self, parts: int, rows: int) -> None:
        self.part_tokens = np.zeros(parts, dtype=np.int64)
        self.parts = np.zeros((parts, rows), dtype=np.int64)
        self.named = np.zeros(rows, dtype=np.int64)  # by neuron id
        self.closed = np.zeros((len(WINDOWS), rows), dtype=np.int64)
        self.open: Bits = np.zeros((0, rows), dtype=np.uint8)

    @property
    def tokens(self) -> int:
        return int(self.part_tokens.sum())

    def add(self, bits: Bits, parts: Sequence[tuple[int, int]]) -> None:
        assert sum(tokens for _, tokens in parts) == len(bits), "every token is of one part"
        at = 0
        for part, tokens in parts:
            self.parts[part] += count_bits(bits[at : at + tokens])
            self.part_tokens[part] += tokens
            at += tokens
        pending = np.concatenate([self.open, bits]) if len(self.open) else bits
        whole = len(pending) // WINDOWS[-1] * WINDOWS[-1]
        for closed, hits in zip(self.closed, _union_counts(pending[:whole]), strict=True):
            closed += hits
        self.open = pending[whole:].copy()

    def unions(self) -> Counts:
        """`[widths, rows]` with the open window closed as it stands."""
        counts: Counts = self.closed.copy()
        for width, hits in zip(WINDOWS, counts, strict=True):
            for at in range(0, len(self.open), width):
                window = self.open[at : at + width]
                hits += window.any(0) * len(window)
        return counts


def count_bits(bits: Bits) -> Counts:
    """int64 `[rows]`: set bits of `[tokens, rows]`. Bytes are added as bytes: many times faster than wider sums."""
    total = np.zeros(bits.shape[1], dtype=np.int64)
    for at in range(0, len(bits), COUNTED):
        total += np.add.reduce(bits[at : at + COUNTED], axis=0, dtype=np.uint8)
    return total


def _union_counts(bits: Bits) -> list[Counts]:
    """Per width of `WINDOWS`: tokens that lie in a window in which the row is active, of whole windows of 16."""
    counts = []
    for width in WINDOWS:
        bits = np.asarray(bits[0::4] | bits[1::4] | bits[2::4] | bits[3::4])
        counts.append(count_bits(bits) * width)
    return counts
