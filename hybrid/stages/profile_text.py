"""The text to profile as windows of tokens in a scratch file, dealt out to halves, with a sample of it for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.stages.texts import Corpus
from profiler.artifacts import UserError, atomic_writer, require_free_space
from profiler.profile import DOMAIN_LIMIT, HALVES

PIECES = 20  # no piece that goes to one half as a whole is longer than this part of its domain
LEAST_WINDOWS = 16  # short texts are cut into shorter windows
TOKEN_BYTES = 4  # of the scratch file
TYPICAL_BYTES = 3  # of a token of text, where only its bytes are known
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenText:
    """Windows one after the other. ids: int32 `[tokens]`, mapped; by window: lengths, domains and documents, of which
    digests are those of 64 bits.
    """

    ids: npt.NDArray[np.int32]
    lengths: Ints
    domains: Ints
    documents: Ints
    digests: frozenset[int]
    seed: int

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return len(self.ids)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> Ints:
        """Place of each window's first token."""
        return self.lengths.cumsum() - self.lengths

    def window(self, index: int) -> list[int]:
        """Token ids of a window."""
        start = self.starts[index]
        found: list[int] = self.ids[start : start + self.lengths[index]].tolist()
        return found

    @cached_property
    def parts(self) -> Ints:
        """By window, `2 · domain + half`.

        Documents go to one of two halves at random, one after the other in a shuffled order, so that both are about as
        long. A document longer than a twentieth of its domain is cut, and its pieces count as documents.
        """
        generator = np.random.default_rng(self.seed)
        halves = np.zeros(self.windows, dtype=np.int64)
        for domain in np.unique(self.domains):
            here = np.flatnonzero(self.domains == domain)
            longest = max(1, self.lengths[here].sum() // PIECES)
            before = self.starts[here] - self.starts[_first_of_run(self.documents[here], here)]
            piece = np.unique(np.stack([self.documents[here], before // longest]), axis=1, return_inverse=True)[1]
            pieces = int(piece.max()) + 1
            dealt = np.empty(pieces, dtype=np.int64)
            dealt[generator.permutation(pieces)] = np.arange(pieces) % HALVES
            halves[here] = dealt[piece.reshape(-1)]
        return HALVES * self.domains + halves

    def sample(self, tokens: int) -> Ints:
        """Windows with at most so many tokens, chosen uniformly, in the order of the text; all where they are fewer."""
        if self.tokens <= tokens:
            return np.arange(self.windows)
        order = np.random.default_rng(self.seed).permutation(self.windows)
        return np.sort(order[: int(np.searchsorted(self.lengths[order].cumsum(), tokens, side="right"))])

    def units(self, windows: Ints) -> list[int]:
        """Tokens of what is held out from training as a whole, for some windows: their documents.

        A document with more than a twentieth of the tokens counts as its windows: there have to be some to choose of.
        """
        lengths, documents = self.lengths[windows], self.documents[windows]
        edges = np.flatnonzero(np.diff(documents, prepend=-1))
        totals = np.add.reduceat(lengths, edges)
        limit = lengths.sum() / PIECES
        runs = np.split(lengths, edges[1:])
        return [int(n) for run, total in zip(runs, totals, strict=True) for n in (run if total > limit else [total])]


def choose_context(corpus: Corpus, tokens: int | None, longest: int) -> int:
    """Tokens of a window: so few for a short text that there are some to hold out."""
    expected = corpus.bytes // TYPICAL_BYTES
    return max(16, min(longest, min(expected, tokens or expected) // LEAST_WINDOWS))


def tokenise(
    corpus: Corpus, context: int, tokens: int | None, seed: int, path: Path, on_tokens: Callable[[int], None]
) -> TokenText:
    """Write the tokens of a text to a scratch file, and map it.

    Args:
        corpus: the text.
        context: tokens of a window.
        tokens: use at most so many.
        seed: of halves and sample.
        path: the file to write.
        on_tokens: told how many there are so far.

    Raises:
        UserError: the text cannot be read, has no token or too many domains, or the disk is full.
    """
    if len(corpus.domains) > DOMAIN_LIMIT:
        raise UserError(
            f"{len(corpus.domains)} texts were given, and a profile tells at most {DOMAIN_LIMIT} apart; put those of "
            "one kind into a folder and give that"
        )
    expected = min(corpus.bytes, TOKEN_BYTES * (tokens or corpus.bytes))
    require_free_space(path.parent, expected, "the text's tokens")
    index: list[tuple[int, int, int]] = []
    digests: set[int] = set()
    with atomic_writer(path) as file:
        done = 0
        for window in corpus.windows(context, tokens):
            file.write(np.array(window.ids, dtype="<i4").data)
            if not index or index[-1][2] != window.document:
                digests.add(window.source.digest)
            index.append((len(window.ids), window.domain, window.document))
            done += len(window.ids)
            on_tokens(done)
    if not index:
        raise UserError("the text to profile has fewer than two tokens: give a longer one")
    lengths, domains, documents = np.array(index, dtype=np.int64).T
    return TokenText(np.memmap(path, dtype="<i4", mode="r"), lengths, domains, documents, frozenset(digests), seed)


def in_batches(text: TokenText, windows: Sequence[int] | Ints, tokens: int, most: int) -> Iterator[list[int]]:
    """Windows in runs of at most so many tokens (or one window) and so many windows."""
    run: list[int] = []
    size = 0
    for window in map(int, windows):
        length = int(text.lengths[window])
        if run and (size + length > tokens or len(run) == most):
            yield run
            run, size = [], 0
        run.append(window)
        size += length
    if run:
        yield run


def _first_of_run(values: npt.NDArray[Any], places: Ints) -> Ints:
    """For each element the place of the first one of the run of equal values that it is in."""
    edges = np.diff(values, prepend=values[0] - 1) != 0
    return np.asarray(places[np.flatnonzero(edges)][edges.cumsum() - 1])
