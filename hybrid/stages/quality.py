"""Quality on a text: perplexity, and agreement with a reference, through the same code that decodes.

The text passes through as windows. Of a window the hidden states of every engine are kept, of the text a few numbers
per window and one per token: logits exist for `TOKENS_AT_ONCE` tokens at a time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
import torch

from hybrid.runtime.engine import Engine
from hybrid.stages.texts import Corpus
from profiler.artifacts import UserError
from profiler.bootstrap import Floats, ratio, ratio_interval
from profiler.coverage import Coverage
from profiler.quality import LayerQuality, Quality

Progress = Callable[[int, int], None]
TOKENS_AT_ONCE = 128  # whose logits are in memory, of each engine
FEWEST_TOKENS = 16
LARGEST_PART = 1 / 20  # of the text; a longer document is cut for the bootstrap
NOT_FINITE = "the model's output holds values that are not finite numbers: the checkpoint is damaged"


@dataclass(frozen=True)
class Passage:
    """One window of a document: token ids of four bytes each, and the document's place in the text."""

    ids: array[int]
    document: int

    @property
    def predicted(self) -> int:
        """Tokens that have one before them."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Source:
    """A document: its name, and the digest of its text; see `Document`."""

    name: str
    digest: int


@dataclass(frozen=True)
class Part:
    """What the bootstrap draws: the passages `first:stop` of one document, which is all of it unless it is long."""

    first: int
    stop: int
    document: int


@dataclass(frozen=True)
class Score:
    """One engine on one text: its summed loss (nats), and the likeliest token in the place of each predicted one."""

    loss: float
    likeliest: list[int]


@dataclass(frozen=True, eq=False)
class Measured:
    """One engine on a text. Of each passage: summed loss (nats), tokens that agree with the reference, and summed KL.

    divergence_of: fp32 `[tokens]`, KL from the reference, token by token.
    """

    losses: Floats
    agreeing: npt.NDArray[np.int64]
    divergences: Floats
    divergence_of: npt.NDArray[np.float32]

    def quality(self, reference: Measured, tokens: npt.NDArray[np.int64], parts: Sequence[Part]) -> Quality:
        """The figures of the whole text, of which `tokens` are the predicted ones of each passage."""
        total = int(tokens.sum())
        ours, theirs, weights = (sums(values, parts) for values in (self.losses, reference.losses, tokens))
        middle, high, higher = (float(q) for q in np.percentile(self.divergence_of, [50, 95, 99]))
        return Quality(
            tokens=total,
            perplexity=math.exp(min(self.losses.sum() / total, 700.0)),
            ratio=float(ratio(self.losses - reference.losses, tokens.astype(np.float64))),
            interval=None if self is reference else ratio_interval(ours, theirs, weights),
            agreement=int(self.agreeing.sum()) / total,
            divergence=float(self.divergences.sum()) / total,
            divergence_p50=middle,
            divergence_p95=high,
            divergence_p99=higher,
        )


def read_passages(corpus: Corpus, context: int, tokens: int | None) -> tuple[list[Passage], list[Source]]:
    """The windows of a corpus, and its documents; with `tokens` the beginning of each domain, so many altogether.

    Raises:
        UserError: a text that is none, or one of a few tokens.
    """
    passages: list[Passage] = []
    sources: list[Source] = []
    latest = None
    for window in corpus.windows(context, tokens):
        if window.source is not latest:
            latest = window.source
            sources.append(Source(latest.name, latest.digest))
        passages.append(Passage(array("i", window.ids), len(sources) - 1))
    if (tokens_found := sum(passage.predicted for passage in passages)) < FEWEST_TOKENS:
        raise UserError(f"the text is too short to measure anything on: {tokens_found} tokens; give some thousands")
    return passages, sources


def sums(values: npt.NDArray[np.float64] | npt.NDArray[np.int64], parts: Sequence[Part]) -> Floats:
    """fp64 `[parts]`: sums over the passages of each part."""
    return np.array([values[part.first : part.stop].sum() for part in parts], dtype=np.float64)


def parts_of(passages: Sequence[Passage]) -> list[Part]:
    """The documents; one longer than a twentieth of the text in pieces of about equal numbers of windows.

    So a text of one file has an interval too. Pieces of one document are more alike than documents are.
    """
    longest = max(1.0, LARGEST_PART * sum(passage.predicted for passage in passages))
    parts, at = [], 0
    for document, group in groupby(passages, key=lambda passage: passage.document):
        sizes = [passage.predicted for passage in group]
        pieces = min(len(sizes), math.ceil(sum(sizes) / longest))
        edges = [at + len(sizes) * i // pieces for i in range(pieces + 1)]
        parts += [Part(first, stop, document) for first, stop in pairwise(edges)]
        at += len(sizes)
    return parts


def evaluate(engines: Sequence[Engine], passages: Sequence[Passage], progress: Progress | None = None) -> list[Quality]:
    """The quality of each engine on the same text; the first one is the reference of all. Raises as `measure`."""
    measured = measure(engines, passages, progress)
    tokens, parts = predicted_tokens(passages), parts_of(passages)
    return [one.quality(measured[0], tokens, parts) for one in measured]


def predicted_tokens(passages: Iterable[Passage]) -> npt.NDArray[np.int64]:
    """int64 `[passages]`: predicted tokens of each."""
    return np.array([passage.predicted for passage in passages], dtype=np.int64)


@torch.inference_mode()
def measure(engines: Sequence[Engine], passages: Sequence[Passage], progress: Progress | None = None) -> list[Measured]:
    """Run each engine over the same passages; the first one is the reference of all.

    `progress(done, total)` is told predicted tokens.

    Raises:
        UserError: an engine's output is not finite.
    """
    total, done = sum(passage.predicted for passage in passages), 0
    shape = (len(engines), len(passages))
    losses, divergences, agreeing = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    divergence_of = np.zeros((len(engines), total), dtype=np.float32)
    agreeing[0] = predicted_tokens(passages)
    finite = True
    for index, passage in enumerate(passages):
        states = [engine.hidden_states(passage.ids) for engine in engines]
        for at, targets in _pieces(passage.ids):
            expected = shares = best = torch.empty(0)
            for i, engine in enumerate(engines):
                found = engine.head(states[i][at : at + len(targets)]).log_softmax(dim=-1)
                losses[i, index] -= found.gather(1, targets[:, None]).double().sum().item()
                if i == 0:
                    finite = finite and math.isfinite(found.min().item())
                    if len(engines) > 1:
                        expected, shares, best = found, found.exp(), found.argmax(-1)
                    continue
                agreeing[i, index] += int((found.argmax(-1) == best).sum())
                gaps = (shares * (expected - found)).sum(dim=-1, dtype=torch.float64).clamp_(min=0)
                divergences[i, index] += gaps.sum().item()
                divergence_of[i, done : done + len(targets)] = gaps.float().numpy()
            done += len(targets)
        if not finite or not np.isfinite(losses[:, index]).all() or not np.isfinite(divergences[:, index]).all():
            raise UserError(NOT_FINITE)
        if progress:
            progress(done, total)
    return [Measured(losses[i], agreeing[i], divergences[i], divergence_of[i]) for i in range(len(engines))]


@torch.inference_mode()
def score(engine: Engine, ids: Sequence[int]) -> Score:
    """What an engine alone makes of a text that fits its context: what figures are paired by, token by token.

    Raises:
        UserError: the engine's output is not finite.
    """
    states, loss, likeliest = engine.hidden_states(ids), 0.0, list[int]()
    for at, targets in _pieces(ids):
        found = engine.head(states[at : at + len(targets)]).log_softmax(dim=-1)
        loss -= found.gather(1, targets[:, None]).double().sum().item()
        likeliest += found.argmax(-1).tolist()
    if not math.isfinite(loss):
        raise UserError(NOT_FINITE)
    return Score(loss, likeliest)


def _pieces(ids: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Where logits of a few predicted tokens begin, and the tokens that follow there: int64 `[tokens]`."""
    for at in range(0, len(ids) - 1, TOKENS_AT_ONCE):
        yield at, torch.tensor(ids[at + 1 : at + 1 + TOKENS_AT_ONCE])


def measure_layers(engine: Engine, passages: Sequence[Passage], progress: Progress) -> tuple[LayerQuality, ...]:
    """What the engine's mode names of what is active, layer by layer, while the hidden states are those of the mode."""
    coverage = Coverage(engine.directory.spec.n_layers)
    for done, passage in enumerate(passages):
        coverage.document()
        engine.hidden_states(passage.ids, tap=coverage)
        progress(done + 1, len(passages))
    return coverage.quality()


def spread(passages: Sequence[Passage], tokens: int) -> list[Passage]:
    """Passages with about so many tokens, at equal distances through the text."""
    whole = sum(len(passage.ids) for passage in passages)
    wanted = max(1, min(len(passages), round(tokens * len(passages) / whole)))
    return [passages[(2 * i + 1) * len(passages) // (2 * wanted)] for i in range(wanted)]
