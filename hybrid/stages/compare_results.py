"""What a comparison found: a row for each contender, and the one ratio that it is about."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.stages.compare_contenders import LOSSY, Absent, Kind
from hybrid.stages.compare_rounds import Figures, Seat
from hybrid.stages.quality import Passage, parts_of, predicted_tokens, sums
from profiler.bootstrap import ratio, ratio_interval
from profiler.quality import Interval


@dataclass(frozen=True)
class Row:
    """One contender. reason: why it was not measured, and then every figure is None.

    tokens_per_second: of decoding, the median over `rounds`. ratio: the median over rounds of its speed over that of
    the fastest layer-wise contender in the same round. first_token_seconds: the median over prompts and rounds. vram:
    bytes of the GPU that its process took, beside a stand-in those counted there. ram: bytes of host memory that its
    process had at most, mapped files included (RSS); ram_proportional: what it had last, pages that others have too
    counted in part (PSS). perplexity, and on the same tokens over_dense (its ratio over dense mode's) with its 95 %
    interval, and agreement (share of tokens where the likeliest is the same): None, with `unscored`, where not
    measured. bytes_per_token, rows_per_token: this engine's; see `RunSummary`. about: what its program says of itself.
    """

    name: str
    kind: Kind
    program: str
    mode: str
    reason: str | None = None
    tokens_per_second: float | None = None
    ratio: float | None = None
    rounds: tuple[float, ...] = ()
    first_token_seconds: float | None = None
    vram: int | None = None
    ram: int | None = None
    ram_proportional: int | None = None
    bytes_per_token: float | None = None
    rows_per_token: dict[str, float] | None = None
    perplexity: float | None = None
    over_dense: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    unscored: str | None = None
    about: dict[str, Any] | None = None


@dataclass(frozen=True)
class Headline:
    """The fastest contender that skips rows, lossy ones aside, over the fastest layer-wise one; in a sentence too."""

    contender: str
    baseline: str
    ratio: float
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """What was measured. device: what the GPU is, None without one; budget: bytes of it. scored_tokens: those that
    perplexity is of. notes: what a reader should know beside the figures.
    """

    model: str
    device: str | None
    budget: int | None
    context: int
    threads: int
    prompt_tokens: int
    tokens: int
    prompts: int
    scored_tokens: int
    text: list[str]
    rows: list[Row]
    headline: Headline | None
    notes: list[str]


def rows_of(everybody: Sequence[Absent | Seat], passages: Sequence[Passage]) -> tuple[list[Row], Headline | None]:
    """A row for each, in their order, and the headline, where there is something to compare.

    The reference of quality is this engine's first layer-wise contender: all of them compute the same function.
    """
    seats = [one for one in everybody if isinstance(one, Seat)]
    best = _fastest(seats, "layer-wise")
    dense = (seat for seat in seats if seat.contender.program == "hybrid" and seat.contender.mode == "dense")
    reference = next((seat.figures for seat in dense if seat.figures.losses), None)
    rows = [_absent(one) if isinstance(one, Absent) else _row(one, best, reference, passages) for one in everybody]
    return rows, _headline(seats, best)


def _fastest(seats: Sequence[Seat], kind: Kind) -> Seat | None:
    """The fastest contender of a kind, lossy ones left out."""
    measured = [s for s in seats if s.contender.kind == kind and not s.failure and s.contender.mode not in LOSSY]
    return max(measured, key=lambda seat: statistics.median(seat.figures.decode), default=None)


def _headline(seats: Sequence[Seat], best: Seat | None) -> Headline | None:
    ours = _fastest(seats, "hybrid")
    if ours is None or best is None:
        return None
    times = _ratio(ours.figures, best.figures)
    name, baseline = ours.contender.name, best.contender.name
    sentence = f"{name} decodes {times:.2f} times as fast as {baseline}, the fastest layer-wise form of this run"
    return Headline(name, baseline, times, sentence)


def _ratio(ours: Figures, theirs: Figures) -> float:
    return statistics.median(a / b for a, b in zip(ours.decode, theirs.decode, strict=True))


def _absent(one: Absent) -> Row:
    return Row(one.name, one.kind, one.program, "", reason=one.reason)


def _row(seat: Seat, best: Seat | None, reference: Figures | None, passages: Sequence[Passage]) -> Row:
    one, figures = seat.contender, seat.figures
    if seat.failure is not None:
        return Row(one.name, one.kind, one.program, one.mode, reason=seat.failure)
    assert figures.memory is not None
    summary = figures.summary or {}
    scored: dict[str, Any] = {"unscored": seat.unscored or one.unscored}
    if scored["unscored"] is None:
        scored = _quality(figures, reference, passages)
    return Row(
        name=one.name,
        kind=one.kind,
        program=one.program,
        mode=one.mode,
        tokens_per_second=statistics.median(figures.decode),
        ratio=None if best is None else _ratio(figures, best.figures),
        rounds=tuple(figures.decode),
        first_token_seconds=statistics.median(figures.first_token_seconds),
        vram=figures.vram,
        ram=figures.memory.peak,
        ram_proportional=figures.memory.proportional,
        bytes_per_token=summary.get("bytes_per_token"),
        rows_per_token=summary.get("rows_per_token"),
        about=figures.about,
        **scored,
    )


def _quality(figures: Figures, reference: Figures | None, passages: Sequence[Passage]) -> dict[str, Any]:
    """Perplexity, and how it compares with that of the reference on the same tokens."""
    tokens, losses = predicted_tokens(passages), np.array(figures.losses)
    found: dict[str, Any] = {"perplexity": math.exp(min(losses.sum() / tokens.sum(), 700.0))}
    if reference is not None:
        expected = np.array(reference.losses)
        alike = sum(_alike(a, b) for a, b in zip(figures.likeliest, reference.likeliest, strict=True))
        found["over_dense"] = float(ratio(losses - expected, tokens.astype(np.float64)))
        found["agreement"] = alike / int(tokens.sum())
        if figures is not reference:
            ours, theirs, weights = (sums(values, parts_of(passages)) for values in (losses, expected, tokens))
            found["interval"] = ratio_interval(ours, theirs, weights)
    return found


def _alike(ours: array[int], theirs: array[int]) -> int:
    return int((np.asarray(ours) == np.asarray(theirs)).sum())
